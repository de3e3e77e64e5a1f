"""C text to BPF bytecode, in a child process that lives for one compilation.

Owns the child (compile_child.py), its time limit, and the small cache of what was compiled before.
It loads nothing into the kernel. Trouble with the host is HostError; a rule set that is too large
for one program is ConfigError; both keep what the compiler printed in `log` and out of the message.
"""

from __future__ import annotations

import base64
import collections
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from appliance.errors import ConfigError, HostError, OpenClawError
from appliance.steering import headers
from appliance.steering.program import XDP_DIRECTORY

CHILD = Path(__file__).with_name("compile_child.py")
# 256 rules take some seconds on a slow machine; an emulated guest is 20 times slower.
COMPILE_S = 180
CACHE_ENTRIES = 16
# LLVM's words when a jump does not reach: the program is longer than BPF's 16-bit jumps.
TOO_LARGE = ("out of insn range", "Branch target", "stack limit", "too many args")

_cache: collections.OrderedDict[str, dict[str, bytes]] = collections.OrderedDict()
_lock = threading.Lock()


def compile_functions(text: str, functions: list[str]) -> dict[str, bytes]:
    """The bytecode of each named function. Maps in it are numbers that loader.py resolves."""
    key = "\0".join([*functions, text])
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    result = _run(text, functions)
    with _lock:
        _cache[key] = result
        while len(_cache) > CACHE_ENTRIES:
            _cache.popitem(last=False)
    return result


def _run(text: str, functions: list[str]) -> dict[str, bytes]:
    flags = ["-w", f"-I{XDP_DIRECTORY}"]
    request = json.dumps({"text": text, "functions": functions, "flags": flags})
    with headers.tree() as tree:
        # A small environment: nothing that the user set can change what is compiled.
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "BCC_KERNEL_SOURCE": os.fspath(tree),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-I", os.fspath(CHILD)],
                input=request.encode(),
                capture_output=True,
                env=environment,
                timeout=COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"compiling the rules took more than {COMPILE_S} s") from None
    log = done.stderr.decode("utf-8", "replace")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        reply = {"failed": f"the compiler ended with status {done.returncode}"}
    if "functions" in reply:
        return {name: base64.b64decode(code) for name, code in reply["functions"].items()}
    raise _trouble(reply, log)


def _trouble(reply: dict[str, str], log: str) -> OpenClawError:
    error: OpenClawError
    if "missing" in reply:
        error = HostError(
            f"bcc's Python module is missing ({reply['missing']})",
            fix="apt-get install python3-bpfcc",
        )
    elif any(words in log for words in TOO_LARGE):
        error = ConfigError("rules: too large for one program; write fewer or shorter ones")
    else:
        lines = [line for line in log.splitlines() if "error:" in line]
        error = HostError(f"bcc did not compile the rules: {(lines or [reply['failed']])[0]}")
    error.log = log  # type: ignore[union-attr]
    return error
