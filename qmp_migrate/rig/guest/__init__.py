"""The rig's test guests: their images and firmware, whether they run under KVM, and what their output proves."""
