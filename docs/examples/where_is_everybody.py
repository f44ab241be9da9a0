"""Where every guest is, from retained state alone; then what changes. Needs: pip install aiomqtt."""

import asyncio
import json
import sys

import aiomqtt

ROOT = "qmp-migrate/v1"


async def main(host: str, port: int) -> None:
    guests: dict[tuple[str, str], dict] = {}  # (guest, host) -> its state there
    last_seq: dict[str, tuple[str, int]] = {}  # events are numbered: a gap is a lost event
    async with aiomqtt.Client(host, port) as client:
        for leaf in ("status", "vm/+", "event"):
            await client.subscribe(f"{ROOT}/host/+/{leaf}", qos=1)
        async for message in client.messages:
            _, name, kind, *rest = str(message.topic).removeprefix(f"{ROOT}/").split("/")
            if kind == "vm" and not message.payload:  # cleared: it is not there any more
                guests.pop((rest[0], name), None)
                print(f"{rest[0]} is gone from {name}")
                continue
            document = json.loads(message.payload)
            if document["schema"].partition("/")[2].partition(".")[0] != "1":
                continue  # another MAJOR: not for this program
            if kind == "vm":
                guests[rest[0], name] = document
                print(f"{document['vm']} is on {name}: {document['runstate']}, {document['role']}")
            elif kind == "status":
                print(f"{name} is {document['state']}")  # `lost` is the last will of its agent
            else:
                session, seq = last_seq.get(name, (document["session"], document["seq"] - 1))
                if session == document["session"] and document["seq"] > seq + 1:
                    print(f"{document['seq'] - seq - 1} events of {name} were lost")
                last_seq[name] = (document["session"], document["seq"])
                print(f"{document['subject']}: {document['type']}")


sys.stdout.reconfigure(line_buffering=True)  # each line at once, also into a file
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
