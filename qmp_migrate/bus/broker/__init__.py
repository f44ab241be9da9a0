"""The broker: an embedded one, Mosquitto's configuration, certificates, and the check of its access rules."""
