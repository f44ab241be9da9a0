"""The MQTT contract, shared by the controller and the agents: topics, messages, client, embedded broker."""
