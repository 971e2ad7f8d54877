"""A client of gRPC as users write it: grpcio, with stubs made from our own schema.

    grpc_client.py PROTO_FOLDER ADDRESS KEY CHECK

Each check is a function below. One that waits for the test says so on stdout and reads a line from
stdin. With $ROOTS, a file of trusted certificates, it speaks TLS.
"""

import importlib
import os
import queue
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status
from grpc_tools import protoc

proto_folder, address, key, check = sys.argv[1:]
metadata = [("authorization", f"Bearer {key}"), ("x-request-id", "from-python")]
CALL = {"metadata": metadata, "timeout": 60}


def stubs():
    folder = tempfile.mkdtemp()
    arguments = [f"-I{proto_folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["protoc", *arguments, "autoglm.proto", "jobs.proto"]) == 0
    sys.path.insert(0, folder)
    names = ["autoglm_pb2", "autoglm_pb2_grpc", "jobs_pb2", "jobs_pb2_grpc"]
    return [importlib.import_module(name) for name in names]


autoglm, autoglm_grpc, jobs_messages, jobs_grpc = stubs()


def connected():
    if "ROOTS" not in os.environ:
        return grpc.insecure_channel(address)
    with open(os.environ["ROOTS"], "rb") as file:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))


channel = connected()
stub = autoglm_grpc.AutoGLMServiceStub(channel)


def wait_for_test(word):
    print(word, flush=True)
    sys.stdin.readline()


def unary():
    request = autoglm.GenerateRequest(prompt="实现快速排序算法", language="python")
    response, call = stub.Generate.with_call(request, **CALL)
    assert response.code and response.code in response.text, response
    assert response.language == "python" and response.id.startswith("gen_"), response
    assert response.latency >= 0 and response.usage.total_tokens > 0
    assert response.finish_reason == autoglm.FINISH_REASON_STOP, response
    assert dict(call.initial_metadata())["x-request-id"] == "from-python"
    assert call.code() == grpc.StatusCode.OK


def first_two_fields():
    raw = channel.unary_unary("/AutoGLMService/Generate")
    answer = raw(b"\x0a\x01x\x15\x00\x00\x00\x3f", **CALL)
    # Field 1, text, whose length takes a byte or two; then field 2, unless it is zero.
    length, start = answer[1], 2
    if length >= 128:
        length, start = (length & 127) | answer[2] << 7, 3
    response = autoglm.GenerateResponse.FromString(answer)
    assert answer[0] == 0x0A and answer[start : start + length].decode() == response.text != ""
    assert (answer[start + length] == 0x15) == (response.latency > 0), answer


def stream():
    request = autoglm.GenerateRequest(prompt="quicksort", language="python")
    chunks = list(stub.GenerateStream(request, **CALL))
    assert len(chunks) > 1, chunks
    assert all(not chunk.HasField("response") for chunk in chunks[:-1])
    response = chunks[-1].response
    assert "".join(chunk.text for chunk in chunks) == response.code != ""
    assert response.usage.completion_tokens > 0


def hundred_streams():
    request = autoglm.GenerateRequest(prompt="quicksort")
    calls = [stub.GenerateStream(request, **CALL) for _ in range(100)]
    codes = [list(call)[-1].response.code for call in calls]
    assert len(codes) == 100 and all(codes), codes


def endless(prompt):
    """Returns a request that never ends by itself: a word that has come often comes again."""
    again = {"language": "python", "max_tokens": 1_000_000, "frequency_penalty": -2}
    return autoglm.GenerateRequest(prompt=prompt + " again" * 64, **again)


def deadline():
    request = endless("a long story")
    try:
        stub.Generate(request, metadata=metadata, timeout=0.3)
        raise AssertionError("it was in time")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    # The daemon's own answer to the same, where the client has more patience than its request.
    request.timeout_ms = 300
    try:
        stub.Generate(request, **CALL)
        raise AssertionError("it was in time")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert details(error)["ErrorInfo"].reason == "generation_timeout"
    wait_for_test("late")


def cancellation():
    request = endless("a long story")
    call = stub.GenerateStream(request, metadata=metadata, timeout=600)
    assert next(call).text
    wait_for_test("streaming")
    call.cancel()
    # The connection stays: what ends is the stream alone.
    wait_for_test("cancelled")
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1


def details(error):
    status = rpc_status.from_call(error)
    assert status.code == error.code().value[0] and status.message == error.details()
    found = {}
    for detail in status.details:
        name = detail.type_url.rsplit(".", 1)[1]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message)
        found[name] = message
    return found


def refused(call, code, reason):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        info = details(error)["ErrorInfo"]
        assert (info.reason, info.domain) == (reason, "autoglmd"), info
        assert info.metadata["request_id"]
        return info
    raise AssertionError(f"{reason} was not refused")


def errors():
    request = autoglm.GenerateRequest(prompt="x")
    code = grpc.StatusCode
    refused(lambda: stub.Generate(request), code.UNAUTHENTICATED, "missing_credentials")
    refused(lambda: list(stub.GenerateStream(request)), code.UNAUTHENTICATED, "missing_credentials")
    klingon = autoglm.GenerateRequest(prompt="x", language="klingon")
    call = lambda: stub.Generate(klingon, **CALL)
    info = refused(call, code.INVALID_ARGUMENT, "invalid_parameter")
    assert info.metadata["param"] == "language"
    large = autoglm.GenerateRequest(prompt="x" * (2 << 20))
    refused(lambda: stub.Generate(large, **CALL), code.RESOURCE_EXHAUSTED, "body_too_large")
    bomb = autoglm.GenerateRequest(prompt="x" * (8 << 20))
    packed = {"compression": grpc.Compression.Gzip, **CALL}
    refused(lambda: stub.Generate(bomb, **packed), code.RESOURCE_EXHAUSTED, "body_too_large")
    raw = channel.unary_unary("/AutoGLMService/Sing")
    refused(lambda: raw(b"", **CALL), code.UNIMPLEMENTED, "not_implemented")
    raw = channel.unary_unary("/AutoGLMService/Generate")
    refused(lambda: raw(b"\xff", **CALL), code.INVALID_ARGUMENT, "invalid_protobuf")
    # After all of these the connection is as good as before.
    assert stub.Generate(request, **CALL).code


def jobs():
    stub = jobs_grpc.AutoGLMJobServiceStub(channel)
    request = autoglm.GenerateRequest(prompt="greet", language="python")
    once = {**CALL, "metadata": [*metadata, ("idempotency-key", f"{os.getpid()}-{address}")]}
    # Neither the call's deadline nor compression is part of the job.
    job = stub.SubmitJob(request, compression=grpc.Compression.Gzip, **once)
    assert job.id.startswith("job_") and job.created_at_ms > 0, job
    again = stub.SubmitJob(request, **{**once, "timeout": 30})
    assert again.id == job.id, again
    other = autoglm.GenerateRequest(prompt="something else")
    code = grpc.StatusCode
    refused(lambda: stub.SubmitJob(other, **once), code.ABORTED, "conflict")

    watched = list(stub.WatchJob(jobs_messages.WatchJobRequest(id=job.id), **CALL))
    kinds = jobs_messages
    assert watched[0].kind == kinds.JOB_EVENT_KIND_STARTED and watched[0].id == "1.0", watched
    assert watched[-1].kind == kinds.JOB_EVENT_KIND_DONE, watched
    assert not any(event.HasField("job") for event in watched[:-1])
    done = watched[-1].job
    assert done.status == kinds.JOB_STATUS_COMPLETED and done.attempts == 1, done
    direct = autoglm_grpc.AutoGLMServiceStub(channel).Generate(request, **CALL)
    assert (done.result.code, done.result.text) == (direct.code, direct.text), done
    assert "".join(event.text for event in watched).strip() == direct.code.strip()
    assert stub.GetJob(jobs_messages.GetJobRequest(id=job.id), **CALL) == done
    # One that has ended stays as it was.
    assert stub.CancelJob(jobs_messages.CancelJobRequest(id=job.id), **CALL) == done
    for place, event in enumerate(watched):
        after = jobs_messages.WatchJobRequest(id=job.id, after=event.id)
        assert list(stub.WatchJob(after, **CALL)) == watched[place + 1 :]

    unknown = "job_00000000-0000-7000-8000-000000000000"
    for name in [unknown, "", "job_", "x" * 500]:
        get = lambda: stub.GetJob(jobs_messages.GetJobRequest(id=name), **CALL)
        refused(get, code.NOT_FOUND, "not_found")
        watch = lambda: list(stub.WatchJob(jobs_messages.WatchJobRequest(id=name), **CALL))
        refused(watch, code.NOT_FOUND, "not_found")
    long = jobs_messages.GetJobRequest(id="x" * 5000)
    refused(lambda: stub.GetJob(long, **CALL), code.RESOURCE_EXHAUSTED, "body_too_large")
    malformed = jobs_messages.WatchJobRequest(id=job.id, after="last")
    call = lambda: list(stub.WatchJob(malformed, **CALL))
    info = refused(call, code.INVALID_ARGUMENT, "invalid_parameter")
    assert info.metadata["param"] == "after", info
    call = lambda: stub.GetJob(jobs_messages.GetJobRequest(id=job.id))
    refused(call, code.UNAUTHENTICATED, "missing_credentials")
    klingon = autoglm.GenerateRequest(prompt="x", language="klingon")
    refused(lambda: stub.SubmitJob(klingon, **CALL), code.INVALID_ARGUMENT, "invalid_parameter")


def kept():
    """A retry of a generation with the same key gets the same response."""
    request = autoglm.GenerateRequest(prompt="greet", language="python", temperature=1)
    once = {**CALL, "metadata": [*metadata, ("idempotency-key", f"kept-{os.getpid()}")]}
    first = stub.Generate(request, **once)
    # grpc-timeout differs, and is not part of the request.
    assert stub.Generate(request, **{**once, "timeout": 17}) == first
    chunks = list(stub.GenerateStream(request, **once))
    assert chunks[-1].response.id == first.id and chunks[-1].response.code == first.code, chunks
    assert "".join(chunk.text for chunk in chunks) == first.code, chunks
    other = autoglm.GenerateRequest(prompt="something else")
    refused(lambda: stub.Generate(other, **once), grpc.StatusCode.ABORTED, "conflict")
    malformed = {**CALL, "metadata": [*metadata, ("idempotency-key", "two words")]}
    call = lambda: list(stub.GenerateStream(request, **malformed))
    refused(call, grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter")


def running_job():
    """Follows a job that runs, leaves, comes back, and sees it end by CancelJob."""
    stub = jobs_grpc.AutoGLMJobServiceStub(channel)
    request = endless("a long story")
    job = stub.SubmitJob(request, **CALL)
    first = stub.WatchJob(jobs_messages.WatchJobRequest(id=job.id), **CALL)
    started, delta = next(first), next(first)
    assert started.kind == jobs_messages.JOB_EVENT_KIND_STARTED, started
    assert delta.kind == jobs_messages.JOB_EVENT_KIND_DELTA and delta.text, delta
    first.cancel()
    second = stub.WatchJob(jobs_messages.WatchJobRequest(id=job.id, after=delta.id), **CALL)
    assert next(second).id == "1.2"
    late = jobs_messages.WatchJobRequest(id=job.id, after="1.4294967295")
    call = lambda: list(stub.WatchJob(late, **CALL))
    refused(call, grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter")
    try:
        third = jobs_messages.WatchJobRequest(id=job.id, after="1.2")
        list(stub.WatchJob(third, metadata=metadata, timeout=0.2))
        raise AssertionError("the job has ended")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    cancelled = stub.CancelJob(jobs_messages.CancelJobRequest(id=job.id), **CALL)
    assert cancelled.status == jobs_messages.JOB_STATUS_CANCELLED, cancelled
    rest = list(second)
    assert rest[-1].kind == jobs_messages.JOB_EVENT_KIND_CANCELLED, rest
    assert rest[-1].job == cancelled, rest


def gzip():
    request = autoglm.GenerateRequest(prompt="sort this: " + "5, 3, 1, " * 2000)
    response, call = stub.Generate.with_call(request, compression=grpc.Compression.Gzip, **CALL)
    assert response.code
    chunks = list(stub.GenerateStream(request, compression=grpc.Compression.Gzip, **CALL))
    assert chunks[-1].response.code == response.code


def health():
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", "AutoGLMService", "AutoGLMJobService"]:
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    unknown = health_pb2.HealthCheckRequest(service="unknown")
    refused(lambda: stub.Check(unknown), grpc.StatusCode.NOT_FOUND, "not_found")
    watch = stub.Watch(unknown)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def watch():
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    wait_for_test("watching")
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    refused(lambda: next(watch), grpc.StatusCode.UNAVAILABLE, "draining")


class WithKey(grpc.StreamStreamClientInterceptor):
    """The reflection package's own client takes no metadata."""

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=metadata), requests)


def reflection():
    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
    services = set(database.get_services())
    assert {"AutoGLMService", "AutoGLMJobService"} <= services, services
    assert "grpc.health.v1.Health" in services, services
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("AutoGLMService")
    assert [method.name for method in service.methods] == ["Generate", "GenerateStream"]
    assert service.methods[1].server_streaming
    service = pool.FindServiceByName("AutoGLMJobService")
    names = [method.name for method in service.methods]
    assert names == ["SubmitJob", "GetJob", "WatchJob", "CancelJob"], names
    assert [method.server_streaming for method in service.methods] == [False, False, True, False]
    request = pool.FindMessageTypeByName("GenerateRequest")
    assert request.fields_by_name["temperature"].number == 2
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo")
    for version in ["v1", "v1alpha"]:
        converse(version)


def converse(version):
    """One question at a time, the stream being open, as grpcurl does it."""
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = queue.Queue()
    answers = method(iter(questions.get, None), **CALL)
    questions.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [service.name for service in next(answers).list_services_response.service]
    assert len(names) == 5, names
    for name in names:
        questions.put(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        files = next(answers).file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(files[0]).service
    questions.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK


globals()[check]()
print("done", flush=True)
