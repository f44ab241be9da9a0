"""Migration of a guest that is shut down."""
