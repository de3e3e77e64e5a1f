"""The child process that compiles: C text in, BPF bytecode out, and LLVM's memory goes with it.

The only importer of bcc. It is run as a script, by path, by compiler.py, and imports nothing of
ours. One JSON object comes on standard input (text, functions, flags), one goes out on the
descriptor that was standard output; whatever bcc and LLVM print goes to standard error, which the
parent keeps from the user. Compiling creates no map and needs no privilege: the text names maps by
number (bpf_pseudo_fd), and the parent puts descriptors there.
"""

import base64
import json
import os
import sys


def main() -> int:
    # bcc and LLVM write to descriptor 1; the answer must not meet them there.
    answer = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        from bcc import BPF
    except ImportError as error:
        reply: dict[str, object] = {"missing": str(error)}
    else:
        try:
            module = BPF(text=request["text"], cflags=request["flags"])
            reply = {
                "functions": {
                    name: base64.b64encode(module.dump_func(name.encode())).decode()
                    for name in request["functions"]
                }
            }
        except Exception as error:  # bcc raises bare Exception
            reply = {"failed": str(error)}
    with os.fdopen(answer, "w") as out:
        json.dump(reply, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
