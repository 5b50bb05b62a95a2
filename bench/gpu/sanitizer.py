"""compute-sanitizer's four checks of the self-test, which runs every kernel; all at once."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from rows import LEFT_OUT, put
from shapes import is_dry

CHECKS = ("memcheck", "racecheck", "synccheck", "initcheck")
SELF_TEST = "from diffreg.ops._self_test import *; check_once(torch.device('cuda', 0))"
REFUSALS = ("Device not supported", "not supported on this", "Insufficient permissions")
FOUND = 9


def command(tool: str, check: str) -> list[str]:
    return [tool, "--tool", check, "--error-exitcode", str(FOUND), sys.executable, "-c", SELF_TEST]


def verdict(said: str, status: int) -> str:
    """passed, refused or failed."""
    if any(refusal in said for refusal in REFUSALS):
        return "refused"
    return "passed" if status == 0 else "failed"


def checked(tool: str, check: str) -> str:
    ran = subprocess.run(
        command(tool, check), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = verdict(ran.stdout, ran.returncode)
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    put(name=check, verdict=found, said=lines[-1] if lines else "")
    if found == "failed":
        print(ran.stdout[-3000:], flush=True)
    return found


def main() -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None or is_dry():
        put(name="compute-sanitizer", left_out="a dry run" if tool else "it is not on the PATH")
        sys.exit(LEFT_OUT)
    found = []
    with ThreadPoolExecutor() as pool:
        for done in as_completed(pool.submit(checked, tool, check) for check in CHECKS):
            found.append(done.result())
    if "failed" in found:
        sys.exit(1)
    sys.exit(LEFT_OUT if "refused" in found else 0)


if __name__ == "__main__":
    main()
