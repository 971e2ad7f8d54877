"""A second peer for HTTP/2: Python's `h2`, which checks what a server sends.

    h2_client.py ADDRESS PORT KEY CHECK

Each check is a function below. With $ROOTS, a file of trusted certificates, it speaks TLS to
`localhost` and asks for `h2` by ALPN.
"""

import json
import os
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings

address, port, key, check = sys.argv[1:]


class Client:
    """One connection. Whatever comes is handed to `h2`, which raises at the first error."""

    def __init__(self):
        self.socket = socket.create_connection((address, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if "ROOTS" in os.environ:
            context = ssl.create_default_context(cafile=os.environ["ROOTS"])
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
            assert self.socket.selected_alpn_protocol() == "h2"
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config=config)
        self.connection.initiate_connection()
        self.answers = {}
        self.is_reading = True
        self.goaways = []
        self.is_over = False
        self.send()

    def send(self):
        self.socket.sendall(self.connection.data_to_send())

    def request(self, method, path, more=(), has_body=False):
        stream = self.connection.get_next_available_stream_id()
        fields = [
            (":method", method),
            (":scheme", "https" if "ROOTS" in os.environ else "http"),
            (":authority", "localhost"),
            (":path", path),
            ("authorization", f"Bearer {key}"),
            *more,
        ]
        self.answers[stream] = {"fields": {}, "body": b"", "over": False, "reset": None}
        self.connection.send_headers(stream, fields, end_stream=not has_body)
        self.send()
        return stream

    def generate(self, body, trailers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = [("content-type", "application/json")]
        stream = self.request("POST", "/api/v1/generate", more, has_body=True)
        while body:
            room = self.connection.local_flow_control_window(stream)
            if room == 0:
                self.step()
                continue
            piece = min(room, self.connection.max_outbound_frame_size, len(body))
            is_last = piece == len(body) and trailers is None
            self.connection.send_data(stream, body[:piece], end_stream=is_last)
            self.send()
            body = body[piece:]
        if trailers is not None:
            self.connection.send_headers(stream, trailers, end_stream=True)
            self.send()
        return stream

    def step(self):
        data = self.socket.recv(65536)
        if not data:
            self.is_over = True
            return
        for event in self.connection.receive_data(data):
            self.handle(event)
        self.send()

    def handle(self, event):
        answer = self.answers.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ResponseReceived):
            answer["fields"] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            answer["body"] += event.data
            if self.is_reading and event.flow_controlled_length:
                length = event.flow_controlled_length
                self.connection.acknowledge_received_data(length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            answer["over"] = True
        elif isinstance(event, h2.events.StreamReset) and answer:
            answer["reset"] = event.error_code
            answer["over"] = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append((event.last_stream_id, int(event.error_code)))

    def answer(self, stream):
        while not self.answers[stream]["over"]:
            assert not self.is_over, (stream, self.answers[stream])
            self.step()
        answer = self.answers[stream]
        assert answer["reset"] is None, answer
        return int(answer["fields"][":status"]), answer["body"]


def page():
    """The body of one page, for comparison."""
    client = Client()
    status, body = client.answer(client.request("GET", "/api/v1/languages"))
    assert status == 200
    sys.stdout.buffer.write(body)


def answers():
    """All the ways in which a request is answered."""
    client = Client()
    status, body = client.answer(client.generate({"prompt": "hello", "language": "python"}))
    assert status == 200 and json.loads(body)["code"], body
    stream = client.request("HEAD", "/livez")
    status, body = client.answer(stream)
    assert status == 200 and body == b"" and client.answers[stream]["fields"]["content-length"]
    status, body = client.answer(client.request("GET", "/nowhere"))
    assert status == 404 and json.loads(body)["error"]["code"] == "not_found", body
    status, body = client.answer(client.generate(b"{"))
    assert status == 400 and json.loads(body)["error"]["code"] == "invalid_json", body
    trailers = [("x-checksum", "none")]
    status, _ = client.answer(client.generate({"prompt": "hello"}, trailers))
    assert status == 200


def streams():
    """Server-sent events, and a hundred of them at once."""
    client = Client()
    ids = [client.generate({"prompt": "hello", "stream": True}) for _ in range(100)]
    for stream in ids:
        status, body = client.answer(stream)
        assert status == 200 and b"event: delta" in body and b"event: done" in body, body
        assert client.answers[stream]["fields"]["content-type"].startswith("text/event-stream")


def upload():
    """A body of several windows."""
    client = Client()
    body = b" " * 400_000 + json.dumps({"prompt": "hello"}).encode()
    for _ in range(4):
        assert client.answer(client.generate(body))[0] == 200


def reset():
    """A stream that is reset leaves the others alone."""
    client = Client()
    more = [("content-type", "application/json")]
    left = client.request("POST", "/api/v1/generate", more, has_body=True)
    client.connection.reset_stream(left, error_code=8)
    client.send()
    assert client.answer(client.request("GET", "/livez"))[0] == 200
    client.connection.ping(b"12345678")
    client.send()


def windows():
    """Every setting changes while answers wait for window."""
    client = Client()
    client.is_reading = False
    client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    client.send()
    stream = client.request("GET", "/api/v1/languages")
    while len(client.answers[stream]["body"]) < 10:
        client.step()
    other = client.request("HEAD", "/livez")
    assert client.answer(other)[0] == 200
    client.connection.update_settings(
        {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535,
            h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0,
            h2.settings.SettingCodes.MAX_FRAME_SIZE: 20_000,
        }
    )
    client.send()
    assert client.answer(stream)[0] == 200
    assert client.answer(client.request("GET", "/livez"))[0] == 200


def drain():
    """Says when it is connected, and leaves at the first GOAWAY: `h2` takes that for the end."""
    client = Client()
    assert client.answer(client.request("GET", "/livez"))[0] == 200
    print("ready", flush=True)
    received = b""
    while not client.goaways:
        received += client.socket.recv(65536)
        # One frame at a time, since `h2` refuses whatever follows a GOAWAY.
        while len(received) >= 9 and not client.goaways:
            length = 9 + int.from_bytes(received[:3], "big")
            if len(received) < length:
                break
            for event in client.connection.receive_data(received[:length]):
                client.handle(event)
            received = received[length:]
    assert client.goaways == [(2**31 - 1, 0)], client.goaways
    client.socket.close()


globals()[check]()
if check != "page":
    print("done")
