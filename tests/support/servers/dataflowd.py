"""A Dataflow that takes jobs and starts none, for clients that believe to speak to Google's.

``python -m tests.support.servers.dataflowd FOLDER`` prints the address of a proxy and serves until its
standard input
ends. The proxy leads to Dataflow, which has the certificate of a throwaway authority (``FOLDER/ca.pem``), and
answers 403 to whoever asks for another host. What was asked lies in the folder, as it came: ``ID.create`` and
``ID.update``. What a job is told to be like is read from there each time: ``state``, and ``error``, which
is what its log says; ``denied`` refuses new ones.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import ipaddress
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

grpc: Any = importlib.import_module("grpc")
dataflow: Any = importlib.import_module("google.cloud.dataflow")

HOST = "dataflow.googleapis.com"
PREFIX = "/google.dataflow.v1beta3."


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """The key and the certificate of Dataflow's host, signed by an authority that is written down."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("Tests", HOST)]

    def signed(number: int, extension: x509.ExtensionType) -> bytes:
        made = (
            x509.CertificateBuilder(names[0], names[number], keys[number].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=number == 0)
            .sign(keys[0], hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(signed(0, x509.BasicConstraints(ca=True, path_length=None)))
    known_as = x509.SubjectAlternativeName(
        [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    key = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, signed(1, known_as)


class Service:
    """Dataflow's methods, as far as Beam asks for them: each takes and gives a message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def _read(self, name: str, otherwise: str = "") -> str:
        path = self._folder / name
        return path.read_text().strip() if path.exists() else otherwise

    @property
    def _state(self) -> Any:
        return dataflow.JobState[f"JOB_STATE_{self._read('state', 'RUNNING')}"]

    def create_job(self, request: Any, context: Any) -> Any:
        if denied := self._read("denied"):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, denied)
        for job in self._jobs.values():
            # As Google's: whoever asks for a second one of an active name is given the first.
            if job.name == request.job.name and self._state.name in ("JOB_STATE_RUNNING", "JOB_STATE_QUEUED"):
                return job
        number = f"2026-01-01_00_00_00-{next(self._numbers)}"
        self._record(f"{number}.create", request)
        self._jobs[number] = dataflow.Job(
            id=number,
            name=request.job.name,
            project_id=request.project_id,
            location=request.location,
            client_request_id=request.job.client_request_id,
        )
        return self._jobs[number]

    def get_job(self, request: Any, context: Any) -> Any:
        if request.job_id not in self._jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}")
        job = dataflow.Job(self._jobs[request.job_id])
        job.current_state = self._state
        return job

    def update_job(self, request: Any, context: Any) -> Any:
        self._record(f"{request.job_id}.update", request)
        (self._folder / "state").write_text(request.job.requested_state.name.removeprefix("JOB_STATE_"))
        return self.get_job(request, context)

    def list_job_messages(self, request: Any, context: Any) -> Any:
        text = self._read("error")
        importance = dataflow.JobMessageImportance.JOB_MESSAGE_ERROR
        told = [dataflow.JobMessage(id="1", message_text=text, message_importance=importance)]
        return dataflow.ListJobMessagesResponse(job_messages=told if text else [])

    def get_job_metrics(self, request: Any, context: Any) -> Any:
        return dataflow.JobMetrics()

    def _record(self, name: str, request: Any) -> None:
        aside = self._folder / f"{name}.new"
        aside.write_bytes(type(request).serialize(request))
        aside.replace(self._folder / name)


class Methods(grpc.GenericRpcHandler):
    """Finds a service's method by the path of a request."""

    def __init__(self, service: Service) -> None:
        self._by_path = {
            f"{PREFIX}{path}": self._handler(method, request, answer)
            for path, method, request, answer in (
                ("JobsV1Beta3/CreateJob", service.create_job, dataflow.CreateJobRequest, dataflow.Job),
                ("JobsV1Beta3/GetJob", service.get_job, dataflow.GetJobRequest, dataflow.Job),
                ("JobsV1Beta3/UpdateJob", service.update_job, dataflow.UpdateJobRequest, dataflow.Job),
                (
                    "MessagesV1Beta3/ListJobMessages",
                    service.list_job_messages,
                    dataflow.ListJobMessagesRequest,
                    dataflow.ListJobMessagesResponse,
                ),
                (
                    "MetricsV1Beta3/GetJobMetrics",
                    service.get_job_metrics,
                    dataflow.GetJobMetricsRequest,
                    dataflow.JobMetrics,
                ),
            )
        }

    @staticmethod
    def _handler(method: Callable[[Any, Any], Any], request: Any, answer: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=request.deserialize, response_serializer=answer.serialize
        )

    def service(self, handler_call_details: Any) -> Any:
        return self._by_path.get(handler_call_details.method)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until there are no more."""
    while content := await reader.read(1 << 16):
        writer.write(content)
        await writer.drain()
    writer.close()


async def serve(folder: Path) -> None:
    """Take jobs until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Methods(Service(folder))])
    credentials = grpc.ssl_server_credentials([certificate(folder)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if not head.startswith(f"CONNECT {HOST}:443 "):
                writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                writer.close()
                return
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            there = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    proxy = await asyncio.start_server(client, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
