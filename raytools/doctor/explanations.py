"""What each code means, where it comes from, what to do, when to accept it: for people, and docs/doctor.md.

`python -m raytools.doctor.explanations > docs/doctor.md` writes the page; a test keeps the two the same.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from raytools.doctor.checks import CHECKS


@dataclass(frozen=True)
class Explanation:
    """One code in four answers."""

    meaning: str
    cause: str
    fix: str
    waiver: str


EXPLANATIONS: dict[str, Explanation] = {
    "RT001": Explanation(
        meaning="What is declared does not hold together: the environment's lock was made for another "
        "declaration or is damaged, or no plan can be made for these machines.",
        cause="environment.* in cluster.yaml was edited after `raytools env lock`; a lock was edited by "
        "hand or merged; nodes.* or slots.* ask for more than a machine has.",
        fix="Lock again (`raytools env lock`) and run the playbook. For a plan that cannot be made, "
        "change the line that the message names; `raytools plan` shows the result without touching a "
        "node.",
        waiver="Do not waive it: the nodes run something else than what the files say.",
    ),
    "RT002": Explanation(
        meaning="A node's plan (node.json) is not the one that cluster.yaml and the node's present "
        "facts lead to. The message lists each key with its old and new value.",
        cause="cluster.yaml or the inventory was changed and the playbook has not been run since; or a "
        "machine has other CPUs or memory than when it was set up.",
        fix="`ansible-playbook playbooks/cluster.yml`. Ray is restarted only if something it was started "
        "with differs.",
        waiver="While a change is being prepared.",
    ),
    "RT101": Explanation(
        meaning="The three counts of CPUs differ: declared (nodes.cpus), physical (affinity ∩ cpuset ∩ "
        "online, and the CPU quotas of all control groups above, rounded down), logical (what Ray's "
        "scheduler hands out). Exact: there is no tolerance.",
        cause="The VM was resized; a container or service limits its CPUs; CPUs were taken offline; "
        "somebody started Ray by hand, which counts the machine's CPUs whatever its own limits are.",
        fix="Write the number the message gives (or auto) as nodes.cpus, or restore the CPUs, then run "
        "the playbook.",
        waiver="Only where an unequal node is wanted; runs there are promised something else than elsewhere.",
    ),
    "RT102": Explanation(
        meaning="A slot has CPUs on which Ray's raylet itself may not run, so no run can be pinned to them.",
        cause="Ray was started under taskset or numactl, or in a cpuset that was made smaller afterwards.",
        fix="Start Ray by the playbook or its service.",
        waiver="Never: runs in that slot are refused.",
    ),
    "RT103": Explanation(
        meaning="Small real runs have tried to leave their slot (other CPUs, more memory, more time, "
        "orphans, other control groups), and one of them succeeded. Level prove only.",
        cause="The user may not make control groups (no delegation), or the kernel forbids mount namespaces.",
        fix="The message ends with the command that allows it, usually `sudo raytools grant --user NAME`.",
        waiver="Where best effort is enough; every record then says what was not enforced.",
    ),
    "RT201": Explanation(
        meaning="The three amounts of memory differ: declared (nodes.memory), physical (MemTotal or the "
        "tightest limit of all control groups above), logical (memory and object store in Ray's "
        "scheduler). Declared may not exceed physical; logical is compared to 1 KiB; against the "
        "machine as it was set up, 1 % is tolerated.",
        cause="The VM was resized, a container or service has a memory limit, or Ray was started by hand: "
        "it then advertises what happened to be free at that moment.",
        fix="Write the amount the message gives (or auto) as nodes.memory, or enlarge the machine; run "
        "the playbook.",
        waiver="Only for nodes that are known to be smaller; slots are cut to the smallest unless "
        "slots.equal is false.",
    ),
    "RT202": Explanation(
        meaning="/dev/shm is smaller than Ray's object store. Ray then keeps the store in files on disk and "
        "says so only in a log.",
        cause="Containers have 64 MiB of shared memory by default; some VMs mount /dev/shm with a size.",
        fix="Remount it larger as the message says (and in /etc/fstab), or give the container --shm-size.",
        waiver="Where no run passes large objects through Ray.",
    ),
    "RT203": Explanation(
        meaning="Swap is on. Limited runs are kept out of it, Ray's and the system's processes are not.",
        cause="Most distributions set swap up at installation.",
        fix="`swapoff -a` and remove the line from /etc/fstab.",
        waiver="Usual on test machines; equal swap on all nodes disturbs comparisons less.",
    ),
    "RT301": Explanation(
        meaning="The GPUs that are declared (nodes.gpus), present (nvidia-smi) and logical (Ray) are not the "
        "same number.",
        cause="A GPU fell off the bus, the driver does not match the kernel, or CUDA_VISIBLE_DEVICES was "
        "set where Ray was started.",
        fix="Run nvidia-smi on the node as the user of Ray; correct nodes.gpus or repair the driver; run "
        "the playbook.",
        waiver="Where a broken GPU is known and its node is not used for GPU runs.",
    ),
    "RT400": Explanation(
        meaning="The node has not been set up, or only in part: its plan, its toolkit or the environment's "
        "Python is missing. Checks that need them are skipped.",
        cause="The playbook was never run for this node, was interrupted, or the root directory was removed.",
        fix="`ansible-playbook playbooks/cluster.yml`, with `--limit NAME` for one node.",
        waiver="For nodes that are to be set up later; better leave them out of the inventory until then.",
    ),
    "RT401": Explanation(
        meaning="Files of the environment are not those that were built. Size, mode and modification "
        "time are compared first; what differs is hashed. The message names files and packages.",
        cause="pip or conda was run inside the environment, a file was edited while debugging, a disk is "
        "failing.",
        fix="Restore the files, or build anew: `raytools env build --rebuild`. Add packages in "
        "cluster.yaml instead. `raytools env verify` hashes everything and lists all differences.",
        waiver="While debugging; results of such a node are not comparable.",
    ),
    "RT402": Explanation(
        meaning="libgomp.so.1 is found neither in the environment nor by the system's loader.",
        cause="Minimal installations lack it, and Python packages such as LightGBM expect it from the "
        "system. AutoGluon then leaves the model out with a warning.",
        fix="Keep `conda: [libgomp]` in cluster.yaml, or install the system's package (`libgomp1`) on "
        "every node.",
        waiver="If nothing uses LightGBM (then the finding is of severity info already).",
    ),
    "RT403": Explanation(
        meaning="The Python or Ray that is running is not the one of the declared environment.",
        cause="The environment was rebuilt while Ray ran; Ray was started from another environment; a "
        "version was installed by hand. Ray itself compares versions only when a node joins.",
        fix="`ansible-playbook playbooks/ray.yml` starts Ray from the environment of the plan.",
        waiver="Never across nodes.",
    ),
    "RT404": Explanation(
        meaning="Nodes have different environments, by lock digest or by the content that was installed.",
        cause="One node was not reached by the last playbook run, or its environment was built on its own.",
        fix="`ansible-playbook playbooks/environment.yml` on all nodes.",
        waiver="Never for benchmarks.",
    ),
    "RT501": Explanation(
        meaning="Little space or few inodes are left where the root, /tmp or the results are. Below 1 GiB (4 "
        "GiB before the first build) is an error; below 5 GiB or 5 % a warning: Ray stops spilling at "
        "95 %.",
        cause="Old environments, archives, results, or logs of many sessions.",
        fix="Remove what is old: unused directories below ROOT/envs, results, package caches.",
        waiver="On large disks where 5 % is plenty.",
    ),
    "RT502": Explanation(
        meaning="Where results go nothing is mounted, something else is, or nobody answers within 5 s. A "
        "directory that does not answer keeps every run waiting that writes there; none of them fails, and "
        "they go on when it does.",
        cause="The NFS server is down, cut off or overloaded; somebody has unmounted it; `existing` names a "
        "directory that is not mounted here.",
        fix="See to the server (`systemctl status nfs-server` there). `ansible-playbook "
        "playbooks/storage.yml` exports and mounts again.",
        waiver="Never: results are lost or late.",
    ),
    "RT601": Explanation(
        meaning="The node did not answer. The message says at which step: name, network, host key, log-in, "
        "becoming root, Python, time.",
        cause="The machine is down, a firewall is closed, the key or user is wrong, or the host key is new "
        "or has changed.",
        fix="As the message says. Host keys are never accepted silently: compare the fingerprint first.",
        waiver="For a machine that is known to be away; the rest is judged all the same.",
    ),
    "RT602": Explanation(
        meaning="The plan's address is not one of the node's, or (with several nodes) the node's own name "
        "resolves to loopback only.",
        cause="Debian's installer maps the host name to 127.0.1.1 in /etc/hosts; addresses change with DHCP.",
        fix="Put the real address before the name in /etc/hosts; for an address that changed, run the "
        "playbook again.",
        waiver="If nothing on the nodes looks itself up by name (torch.distributed and dask do).",
    ),
    "RT701": Explanation(
        meaning="Ray's own list of living nodes is not the inventory: Ray does not answer, a declared "
        "node is dead or missing, or a foreign one has joined.",
        cause="Ray ended (logs/ray.log below the root says why), a firewall blocks one of the pinned ports, "
        "the token differs between nodes, or a machine outside the inventory was pointed at this "
        "head.",
        fix="Run the playbook; it starts what does not run and names a busy port or a foreign Ray.",
        waiver="For nodes that were stopped on purpose.",
    ),
    "RT702": Explanation(
        meaning="A variable of ray.env (or of ray.auth) is not in the environment of the running raylet with "
        "its value. Read from /proc/<pid>/environ, so it is what the process really got.",
        cause="cluster.yaml was changed without a restart, or Ray was started by hand.",
        fix="`ansible-playbook playbooks/ray.yml` restarts Ray where a flag differs.",
        waiver="If the difference is known to be harmless.",
    ),
    "RT703": Explanation(
        meaning="The raylet ignores SIGINT or SIGTERM; its workers inherit that. With SIGINT ignored, "
        "ray.cancel does nothing.",
        cause="Ray was started as a background job of a non-interactive shell (`ray start … &` in a "
        "script), which sets SIGINT to ignored, or under nohup-like wrappers.",
        fix="Start Ray by the playbook or its service.",
        waiver="Never: time limits of tasks rely on it.",
    ),
    "RT704": Explanation(
        meaning="Another Ray lives on the node. It shares CPUs and memory that runs were promised. In the "
        "default directory /tmp/ray it also attracts every ray.init() without an address: AutoGluon "
        "attaches to it and then fails, because it passes num_cpus.",
        cause="Somebody ran `ray start` or a script with ray.init(); a second cluster is on the same "
        "machine.",
        fix="End it by the kill command in the message. Never use `ray stop`: it ends every Ray of the "
        "machine, ours too. If it has to stay, set RAY_ADDRESS=local for programs that start a Ray of "
        "their own (limited runs have it).",
        waiver="On shared machines, for as long as nothing is measured.",
    ),
    "RT801": Explanation(
        meaning="Processes of a Ray that is dead are still running: workers, agents, or what tasks have "
        "started. They hold CPU, memory and GPUs. They are looked at twice, a second apart, since "
        "agents end by themselves.",
        cause="A raylet was killed (kill -9, out of memory): nothing ends the children of its workers then.",
        fix="The kill command in the message.",
        waiver="If the processes are known and meant to stay.",
    ),
    "RT802": Explanation(
        meaning="The raylet may open fewer files than Ray needs: below 8192 a warning, below 4096 an error.",
        cause="The login shell's or the service's limit is the distribution's 1024.",
        fix="LimitNOFILE in the unit, or a file in /etc/security/limits.d; then restart Ray.",
        waiver="For clusters with few workers and small objects.",
    ),
    "RT803": Explanation(
        meaning="A run's supervisor was killed and what it kept is still listed: a held file, maybe a "
        "control group with processes. CPUs are free again (kernel locks end with their "
        "holder).",
        cause="kill -9 on the supervisor, or the kernel's out-of-memory killer.",
        fix="The next `raytools run` of that user, or of root, sweeps it.",
        waiver="Harmless if the processes are gone.",
    ),
    "RT901": Explanation(
        meaning="Who can reach Ray can run code on the nodes. The token must exist, belong to Ray's user and "
        "be readable by nobody else; without a token, or with a dashboard that listens more widely "
        "than declared, the network decides.",
        cause="A token was copied with other permissions; ray.auth is disabled; Ray was started by hand.",
        fix="As the message says. After a token was readable for others, make a new one.",
        waiver="auth: disabled in a closed network.",
    ),
    "RT902": Explanation(
        meaning="The root directory, the toolkit, the environment, the plan, or a directory above them "
        "can be changed by other users; they would decide what runs here.",
        cause="umask 000, a chmod -R 777 that made an error message go away, or a root below a shared "
        "directory.",
        fix="chmod and chown as the message says.",
        waiver="On machines with a single user.",
    ),
}


def explain(code: str) -> str:
    """One code for the terminal."""
    found, title = EXPLANATIONS[code], _titles()[code]
    parts = [
        ("Meaning", found.meaning),
        ("Cause", found.cause),
        ("Fix", found.fix),
        (
            "Accepting it",
            f'{found.waiver} In cluster.yaml: doctor: {{waive: [{{code: {code}, reason: "…"}}]}}',
        ),
    ]
    lines = [f"{code}  {title}", ""]
    for heading, text in parts:
        wrapped = textwrap.wrap(text, 96, break_on_hyphens=False, break_long_words=False)
        lines += [heading, *(f"  {line}" for line in wrapped), ""]
    return "\n".join(lines).rstrip()


def _titles() -> dict[str, str]:
    return {check.code: check.title for check in CHECKS}


_INTRODUCTION = """\
# The doctor's codes

`raytools doctor` gathers once from every node (one call each, in parallel; Ray's own view once on the head),
judges what it found, and reports. It changes nothing. A code keeps its meaning for ever; scripts and waivers
may rely on it. `raytools doctor --explain RT101` prints an entry of this page.

Ranges: RT0xx configuration · RT1xx CPU · RT2xx memory and shared memory · RT3xx GPU · RT4xx environment ·
RT5xx storage · RT6xx network and time · RT7xx Ray service and flags · RT8xx processes and hygiene ·
RT9xx security.

Levels, each including those before it: `config` (files only), `hosts` (the machines; Ray need not run),
`cluster` (the default), `prove` (small real runs that try to exceed their limits).

A check passes, warns, fails, is skipped (with the reason, for example because a process is another user's),
or crashes; a crash is an error of its own and the others are judged all the same.

To accept a code, with a reason, in cluster.yaml; it is still shown, and no longer counts:

```yaml
doctor:
  waive:
    - {code: RT203, reason: "test machines"}
```

Exit codes: 0 nothing at or above `--threshold` (default `error`), 1 findings, 2 could not run.
"""


def page() -> str:
    """docs/doctor.md."""
    sections = [_INTRODUCTION]
    for check in CHECKS:
        found = EXPLANATIONS[check.code]
        sections.append(
            f"## {check.code} {check.title}\n\nLevel `{check.level}`.\n\n"
            f"**Meaning.** {found.meaning}\n\n**Cause.** {found.cause}\n\n"
            f"**Fix.** {found.fix}\n\n**Accepting it.** {found.waiver}\n"
        )
    return "\n".join(sections)


if __name__ == "__main__":
    print(page(), end="")
