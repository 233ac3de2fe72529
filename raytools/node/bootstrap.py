# Sent to a node as text, before anything of ours is there; see raytools/transport.py. Reads from standard
# input one line of JSON (the header), the package as a zip, and the command's own standard input.
# Nothing is left on the node: the zip lies in a file without a name, gone with the last process using it.
#
# Must run on any Python 3 so that it can say that a Python is too old: no annotations, no f-strings, no
# pathlib. Never imported. That is why the linters pass over it:
# ruff: noqa
# mypy: ignore-errors
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

OLDEST = (3, 10)
source = sys.stdin.buffer  # no second reader: this one may have read ahead
header = json.loads(source.readline().decode())


def give_up(text):
    sys.stderr.write("raytools-bootstrap: " + text + "\n")
    sys.stderr.flush()
    os._exit(96)


def kept(count):
    data = source.read(count)
    if len(data) < count:
        give_up("the connection ended before the command had arrived")
    nameless = tempfile.TemporaryFile()
    nameless.write(data)
    nameless.flush()
    nameless.seek(0)
    return nameless


def plan():
    try:
        with open(os.path.join(header["root"], "node.json")) as file:
            return json.load(file)
    except (IOError, OSError, ValueError) as error:
        give_up("the node is not provisioned (%s)" % error)


def interpreter():
    """Python and PYTHONPATH for what is asked: our code, or the toolkit that is installed here."""
    path = "/proc/self/fd/%d" % archive.fileno()
    if header["python"] != "system":
        node = plan()
        if not os.access(node["python"], os.X_OK):
            give_up("the node is not provisioned (%s is not there)" % node["python"])
        return node["python"], node["toolkit"] if header["python"] == "installed" else path
    if sys.version_info[:2] >= OLDEST:
        return sys.executable, path
    for minor in range(20, OLDEST[1] - 1, -1):
        for directory in os.environ.get("PATH", "/usr/bin").split(":"):
            candidate = os.path.join(directory, "python3.%d" % minor)
            if os.access(candidate, os.X_OK):
                return candidate, path
    found = ".".join(str(part) for part in sys.version_info[:3])
    give_up("found Python %s, expected 3.10 or newer" % found)


def put_file():
    """Writes what was sent beside the target and renames it: readers see the old file or the new one."""
    path = header["put"]
    beside = "%s.%d.part" % (path, os.getpid())
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, header["mode"]), "wb") as file:
            file.write(archive.read())
            os.fchmod(file.fileno(), header["mode"])
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except (IOError, OSError) as error:
        give_up("cannot write %s (%s)" % (path, error.strerror))
    os._exit(0)


def watched(command, environment):
    """Runs the command until it ends or the controller is gone (end of our standard input)."""
    child = subprocess.Popen(
        command, env=environment, stdin=payload, pass_fds=[archive.fileno()], start_new_session=True
    )

    def wait_for_controller():
        while source.read(1):
            pass
        for number, patience_s in ((signal.SIGTERM, header["grace_s"]), (signal.SIGKILL, 0)):
            try:
                os.killpg(child.pid, number)
                child.wait(patience_s or None)
                return
            except OSError:
                return
            except subprocess.TimeoutExpired:
                pass

    threading.Thread(target=wait_for_controller, daemon=True).start()
    code = child.wait()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)


sys.stdout.write(header["marker"] + "\n")
sys.stdout.flush()
archive = kept(header["archive_bytes"])
payload = kept(header["stdin_bytes"])
if header.get("put"):
    put_file()
program, search_path = interpreter()
environment = dict(os.environ, PYTHONPATH=search_path, PYTHONSAFEPATH="1", PYTHONIOENCODING="utf-8")
environment["RAYTOOLS_ROOT"] = header["root"]
environment.pop("PYTHONHOME", None)
command = [program, "-m", "raytools.node"] + header["argv"]
os.chdir("/")  # -m puts the working directory first on the path of older Pythons
if header["watch"]:
    watched(command, environment)
signal.alarm(header["timeout_s"])  # outlives exec: a command whose controller gave up does not stay
os.set_inheritable(archive.fileno(), True)
os.dup2(payload.fileno(), 0)
os.execve(program, command, environment)
