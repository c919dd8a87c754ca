"""What others write to stderr, without their start-up notes."""

import io
import subprocess
import sys

from bcdlib.runs import noise

NOISE = [
    "I0000 00:00:1795755082.763200    6987 cudart_stub.cc:31] Could not find cuda drivers",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "2026-11-27 05:00:00.123456: W external/local_xla/xla/tsl/framework/cpu_allocator.cc:83] Allocation",
    "E0000 00:00:1795755082.763200    6987 cuda_executor.cc:31] Unable to register cuDNN factory",
    "E0000 00:00:1795761609.879243   28340 cuda_platform.cc:52] failed call to cuInit: INTERNAL",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
    "[IPKernelApp] WARNING | Kernel is running over TCP without encryption. Communication is plain",
]
KEPT = ["Traceback (most recent call last):", "E0000 00:00:1 7 a.cc:31] Out of memory", "Interesting", "é"]


def test_only_noise_is_dropped():
    text = "".join(f"{line}\n" for line in NOISE + KEPT)
    code = (
        "import click, os, sys\nfrom bcdlib.__main__ import cli\n@click.command()\ndef say():\n"
        f"    os.write(2, {text!r}.encode()); print('of Python', file=sys.stderr); os._exit(3)\ncli(say)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and sorted(done.stderr.splitlines()) == sorted([*KEPT, "of Python"])
    file = io.StringIO()
    noise.WithoutNoise(file).write(text)
    assert file.getvalue() == "".join(f"{line}\n" for line in KEPT)


def test_progress_bars_go_on_at_once():
    """Their text ends without a new line; it must not wait for one."""
    code = (
        "import os, time\nfrom bcdlib.runs import noise\nnoise.drop_noise()\n"
        "for part in (b'\\rDecode:  0%', b' and more', b'\\rDecode: 50%'):\n    os.write(2, part); input()\n"
        f"os.write(2, b'\\n' + {NOISE[0]!r}.encode() + b'\\nend')"
    )
    pipe = dict(stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)
    with subprocess.Popen([sys.executable, "-c", code], **pipe) as process:
        for part in (b"\rDecode:  0%", b" and more", b"\rDecode: 50%"):
            assert b"".join(process.stderr.read(1) for _ in part) == part
            process.stdin.write(b"\n")
        assert process.stderr.read() == b"\nend"
