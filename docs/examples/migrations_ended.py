"""One line for each migration that ends. Needs: pip install paho-mqtt."""

import json
import sys

import paho.mqtt.client as mqtt


def on_connect(client, userdata, flags, reason, properties):
    client.subscribe("qmp-migrate/v1/migration/+/state", qos=1)


def on_message(client, userdata, message):
    if not message.payload:
        return  # an old migration was forgotten
    state = json.loads(message.payload)
    if state["outcome"] is not None:
        print(state["id"], state["vm"], state["outcome"], "owner:", state["owner"], flush=True)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
# client.tls_set("ca.crt", "subscriber@dashboard.crt", "subscriber@dashboard.key")
client.on_connect, client.on_message = on_connect, on_message
client.connect(sys.argv[1], int(sys.argv[2]))
client.loop_forever()
