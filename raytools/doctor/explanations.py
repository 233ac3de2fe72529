"""What each code means, where it comes from, what to do, when to accept it: for people, and docs/doctor.md.

`python -m raytools.doctor.explanations > docs/doctor.md` writes the page; a test keeps the two the same.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from raytools.doctor.checks import CHECKS
from raytools.doctor.table import as_markdown


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
    "RT003": Explanation(
        meaning="cluster.yaml accepts a code of which nothing is found any more. The waiver would hide the "
        "next fault of that kind. Only checks that could be made on every node count: a level that does not "
        "include a check, or --skip, leaves its waiver alone. Of what comes and goes (RT107, RT303, RT406, "
        "RT606, RT804, RT805) a waiver may stay while there is nothing.",
        cause="What was accepted has been mended.",
        fix="Remove the line from doctor.waive in cluster.yaml.",
        waiver="Where a fault comes and goes that is not among those.",
    ),
    "RT004": Explanation(
        meaning="The versions of Ray, AutoGluon and Python that are pinned in environment.pip, or locked, do "
        "not belong together: AutoGluon asks for a range of Ray's versions, and both ask for a range of "
        "Python's. The ranges are from the packages' own metadata; a release that is newer than the table in "
        "raytools/doctor/checks/versions.py is not judged.",
        cause="AutoGluon names its range for Ray only in its extra `ray`, so that without it a solver takes "
        "any Ray. Nothing complains until a fit first needs Ray, and then that fit refuses it.",
        fix="Pin a Ray within the range that the message names, or another AutoGluon; write "
        "`autogluon.tabular[ray]`, so that the solver knows the range too. Then `raytools env lock`.",
        waiver="Where AutoGluon never uses Ray (no folds in parallel, no tuning).",
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
    "RT104": Explanation(
        meaning="A variable that decides how many threads numerical libraries start has another value in one "
        "node's Ray than in most. The same run uses its CPUs differently there.",
        cause="ray.env was set for one host in the inventory; Ray was started by hand with a shell's "
        "variables.",
        fix="Set it under ray.env in cluster.yaml, for all, and run the playbook. A limited run sets the "
        "number of threads itself; plain Ray tasks have what the raylet has.",
        waiver="Where hosts differ on purpose.",
    ),
    "RT105": Explanation(
        meaning="The nodes do not have the same processor model. Results are the same, times are not.",
        cause="VMs of another type, or a cloud that placed like VMs on unlike hardware.",
        fix="Use machines of one type; or compare times only between runs on like nodes: each record "
        "names its host.",
        waiver="Where only results matter, not times.",
    ),
    "RT106": Explanation(
        meaning="The CPUs' clock is governed in another way than on most nodes: by another governor, or it "
        "may go beyond its nominal rate (turbo, boost) on some nodes only. Where all are alike, but the "
        "governor is not `performance`, that is said for your information.",
        cause="Another image or firmware; somebody has set a governor by hand, or a service such as tuned "
        "has.",
        fix="`node_cpu_governor: performance` in the inventory, for all nodes, then `ansible-playbook "
        "playbooks/node.yml`. Turbo is switched in the firmware, or below /sys/devices/system/cpu.",
        waiver="Where times are not compared. Most virtual machines do not show their clock: then the check "
        "is skipped.",
    ),
    "RT107": Explanation(
        meaning="While the doctor looked, and for another second when that was much, the hypervisor gave at "
        "least 5 % of the node's CPU time to other machines (`steal` in /proc/stat). Runs take longer here, "
        "and not always as much longer.",
        cause="The host has promised more CPUs than it has, or the machine's type has only a share of a CPU "
        "and has used it up.",
        fix="Move the machine to another host, or to a type with CPUs of its own. The share since boot, in "
        "the message, tells whether it is always so.",
        waiver="Where times are not compared.",
    ),
    "RT108": Explanation(
        meaning="Two slots have the same CPU, or two threads of one core. A thread is half a CPU of its "
        "sibling: the runs of the two slots slow each other down.",
        cause="raytools never plans it so. node.json was edited, or the machine shows other cores than when "
        "the plan was made: a VM that was moved or resized, hyper-threading that was switched on.",
        fix="`ansible-playbook playbooks/cluster.yml` plans again; with fewer slots (`slots.per_node`) if "
        "they do not fit.",
        waiver="Never where runs are compared.",
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
    "RT204": Explanation(
        meaning="Two machines with as many CPUs and as much memory, and the same declared for both, advertise"
        " different amounts of memory to Ray (by more than 2 % and 512 MiB). A run that fits on one "
        "may not on the other.",
        cause="One was provisioned with an older cluster.yaml, or Ray was started by hand.",
        fix="`ansible-playbook playbooks/cluster.yml`. Where a host is to be smaller, say so for it in "
        "the inventory (raytools: {nodes: …}); then it counts as another kind.",
        waiver="Seldom: declare the difference instead.",
    ),
    "RT205": Explanation(
        meaning="Ray has a monitor of its own that kills tasks when the whole node's memory is used beyond a "
        "threshold. Slots and object store together are promised more than that: it may kill a run that is "
        "within its limit. raytools sets the threshold so high that it cannot; Ray's own is 95 %.",
        cause="RAY_memory_usage_threshold is set under ray.env; Ray was started by hand, without raytools' "
        "threshold.",
        fix="Remove RAY_memory_usage_threshold from ray.env, or set more memory aside "
        "(nodes.system_reserved.memory); then run the playbook, which restarts Ray.",
        waiver="Where it is better that Ray ends a run than that the machine swaps.",
    ),
    "RT206": Explanation(
        meaning="What the slots are promised, the object store, and what is set aside for the system "
        "(nodes.system_reserved.memory) are together more than the node had when it was set up (1 % is "
        "tolerated). When all of it is used, the kernel ends something. A machine that has become smaller "
        "since is RT201's.",
        cause="nodes.system_reserved.memory was raised and the playbook has not been run since; node.json "
        "was edited.",
        fix="`ansible-playbook playbooks/cluster.yml` plans again with what there is.",
        waiver="Never: runs are promised memory that does not exist.",
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
    "RT302": Explanation(
        meaning="Two nodes with GPUs have different NVIDIA drivers. What runs on them is compiled or chosen "
        "by the driver, so results and times can differ.",
        cause="One machine was updated, or comes from another image.",
        fix="Install the same driver on all of them.",
        waiver="Where times on GPUs are not compared.",
    ),
    "RT303": Explanation(
        meaning="A process that is no run of this cluster computes on a GPU that slots give to runs. Runs "
        "find less memory than the card has, and take longer.",
        cause="Somebody's notebook or desktop; a killed program whose children live on.",
        fix="End it, or leave GPUs out of the cluster: nodes.gpus.",
        waiver="Where the desktop's few MiB do not matter.",
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
    "RT405": Explanation(
        meaning="A package is installed, and cannot be imported by the environment's Python as Ray's user. "
        "Ray, numpy, scipy, pandas, pyarrow, scikit-learn, LightGBM, XGBoost, CatBoost, PyTorch and "
        "AutoGluon are tried, as far as they are installed. One that takes the interpreter down with it is "
        "named, and the next is tried all the same. Level prove only.",
        cause="A library of the system is missing on this node (the message names it); the processor lacks "
        "an instruction that the package was built for (the interpreter ends with exit code -4, a signal "
        "SIGILL); versions that do not fit each other; a file that Ray's user may not read.",
        fix="Install what the message names, on all nodes alike, or leave the package out of "
        "environment.pip. `raytools env verify` tells whether files were changed.",
        waiver="Where nothing uses that package. AutoGluon leaves models out whose package is missing, with "
        "a mere warning: results then differ between nodes.",
    ),
    "RT406": Explanation(
        meaning="`import ray` takes more than three times as long here as on most nodes, and 3 s longer. "
        "Each worker that Ray starts, and each run, waits as much longer. Of two nodes neither is the odd "
        "one: there it is only told. Level prove only.",
        cause="A slow or busy disk, an environment on a network file system, files that were not in memory "
        "yet (then the second time is fast), or something else that uses the CPUs.",
        fix="Run it again; then look at the disk and the load: `raytools doctor --level prove --only "
        "RT503,RT505,RT805`.",
        waiver="Where nodes have unlike disks on purpose.",
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
    "RT503": Explanation(
        meaning="The environment is on a network file system. Importing AutoGluon reads some ten thousand "
        "files; from there each costs a round trip, and all wait when the server does.",
        cause="raytools_root is on a shared home directory, or `environment.prefix` names a directory on "
        "NFS.",
        fix="Put the root on a local disk; an environment of one's own can be made part of the cluster "
        "(`environment.pip`) instead of being shared.",
        waiver="Where start-up times do not matter.",
    ),
    "RT504": Explanation(
        meaning="The storage is mounted, but Ray's user cannot write there on this node, or cannot read what "
        "it has just written on another, or the file belongs to another number here. Records and results of "
        "runs would be lost or split.",
        cause="Another export or directory is mounted on one node; the service account has different uids; "
        "the export squashes users or is read-only.",
        fix="The message names node and cause. `findmnt` and `id` on both nodes; for storage that raytools "
        "serves: `ansible-playbook playbooks/storage.yml`.",
        waiver="Never with shared storage.",
    ),
    "RT505": Explanation(
        meaning="Where results go a file cannot be written, locked (fcntl and flock), renamed over another, "
        "or read again. For your information: a small write takes at least 100 ms until it is on the disk, "
        "and three times as long as on most nodes. Tried as Ray's user in a directory of its own, which is "
        "removed. Level prove only.",
        cause="The directory is missing, full, read-only or another user's; NFS mounted with `nolock`, or a "
        "lock service that is down. Slow writes: a failing or overloaded disk, a long way to the server.",
        fix="As the message says; for storage that raytools mounts: `ansible-playbook "
        "playbooks/storage.yml`. Two doctors that look at the same time use the same file: look again.",
        waiver="Locks only: where no program that runs here locks its files (SQLite, for one, does).",
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
    "RT603": Explanation(
        meaning="A node's clock is more than 2 s from the controller's. The time between question and answer "
        "is not counted against it, so that small differences are not seen on slow nodes.",
        cause="No time service runs, or a VM was paused and its clock not set again.",
        fix="`timedatectl set-ntp true`, or install chrony. Records, logs and NFS time stamps of "
        "different nodes cannot be put in order without.",
        waiver="Never: it costs nothing to mend.",
    ),
    "RT604": Explanation(
        meaning="A node cannot open a connection to what Ray listens with on another: the GCS, the raylet, "
        "the object manager. Tasks hang or are lost as soon as those two have something to tell each "
        "other, even if both are alive for the head.",
        cause="A firewall or security group between two workers; a route that exists in one direction only.",
        fix="Allow TCP between all nodes on the ports under ray.ports, the workers' range included.",
        waiver="Never: Ray needs every pair.",
    ),
    "RT605": Explanation(
        meaning="The network device that has the cluster's address sends packets of another size (MTU) than "
        "on most nodes. Small messages arrive; where something on the way drops what is too large and does "
        "not say so, large objects hang.",
        cause="Jumbo frames were switched on for some machines only; a VPN, a tunnel or a container's bridge "
        "makes packets smaller.",
        fix="Give the device the MTU of the others: `ip link set DEVICE mtu N`, and the same in the system's "
        "network configuration, so that it stays.",
        waiver="Where it is so on purpose and all nodes reach each other with large packets: `ping -M do -s "
        "1472 ADDRESS` for 1500.",
    ),
    "RT606": Explanation(
        meaning="All nodes stand in a ring; each connects to the next at the last port of ray.ports.workers "
        "and sends for half a second. A node could not. For your information: one sends with less than a "
        "third of the rate between most nodes. A node on which that port is taken, or that could not be "
        "asked, is left out, and so is who would send to it. Level prove only.",
        cause="A firewall or security group that has only Ray's single ports open, not the workers' range. "
        "Slow: a device that came down to 100 Mbit/s or half duplex, another switch, a limit of the "
        "machine's type.",
        fix="Allow TCP between all nodes on the whole range. For a slow one: `ethtool DEVICE`, `ip -s link`.",
        waiver="For a slow link that is known. Never for one that is closed: workers talk to each other "
        "there.",
    ),
    "RT607": Explanation(
        meaning="The name that another node calls itself by leads to an address here that is none of that "
        "node's. That a name is not known is no fault: Ray goes by addresses. Level prove only, and only "
        "where Ray runs on another node.",
        cause="An old line in /etc/hosts; a name that the DNS gives to another machine; two machines that "
        "call themselves the same.",
        fix="Correct the line in /etc/hosts or the DNS; where two machines have one name, give one of them "
        "another (`hostnamectl set-hostname`).",
        waiver="If nothing on the nodes goes by names (torch.distributed and dask do).",
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
        "its value. Read from /proc/<pid>/environ, so it is what the process really got. Level prove also "
        "asks a worker on each node; what the raylet has and the worker has not is a warning.",
        cause="cluster.yaml was changed without a restart, or Ray was started by hand. In a worker: the "
        'runtime environment of a job sets the variable (`runtime_env={"env_vars": …}`).',
        fix="`ansible-playbook playbooks/ray.yml` restarts Ray where a flag differs. For a worker: take the "
        "variable out of the job's runtime environment.",
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
    "RT705": Explanation(
        meaning="Where systemd is PID 1, Ray's unit starts at boot, is given the cgroup controllers that runs"
        " need, and is not started again and again. From ten restarts on it is a warning, fewer are "
        "for your information.",
        cause="Somebody has disabled or edited the unit; Ray ends by itself: its log says why. A worker "
        "whose head is away is restarted every few minutes.",
        fix="`ansible-playbook playbooks/ray.yml` writes the unit anew. For restarts: `journalctl -u "
        "raytools-ray-NAME` and logs/ray.log.1 below the root.",
        waiver="After a long time without a head: restarts count until Ray is started by a playbook or the "
        "machine boots.",
    ),
    "RT706": Explanation(
        meaning="/tmp/ray is there, and another user than its owner cannot write to it, or it is no "
        "directory. Every Ray that is started without options goes there, also the one that AutoGluon "
        "starts: for other users it fails with a permission error. Our Ray and limited runs have places of "
        "their own.",
        cause="Somebody, maybe root, once started a Ray with a strict umask, or made the directory by hand.",
        fix="If no Ray is in it: `rm -rf /tmp/ray`; else `chmod 1777 /tmp/ray`.",
        waiver="Where only limited runs and this cluster's Ray are used.",
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
    "RT804": Explanation(
        meaning="A process waits for a device or a server and did not move for a second (state D): nothing "
        "can end it before that answers, and its run is not over until then. Or 100 processes and more have "
        "ended and are not collected by their parents (zombies); each holds a process number until its "
        "parent ends.",
        cause="State D: an NFS server that is away, a failing disk, a driver. Zombies: a program that starts "
        "others and never waits for them; a container whose PID 1 is no init.",
        fix="State D: see to the storage (`raytools doctor --only RT502`, `dmesg`); when the server is back "
        "they go on. Zombies: end or repair the parent that the message names; a container wants an init "
        "(`docker run --init`).",
        waiver="For a parent that is known and has enough process numbers left.",
    ),
    "RT805": Explanation(
        meaning="Processes that belong neither to a limited run, nor to a Ray that raytools started, nor to "
        "the doctor itself use CPUs or memory that were promised to runs: half a CPU more than "
        "nodes.system_reserved.cpus, looked at twice and the smaller counts; or more memory of their own "
        "than nodes.system_reserved.memory. The message names the greediest.",
        cause="Somebody's notebook or compiler, a backup, a service that came with the image, another Ray.",
        fix="End it, start it by `raytools run` so that it gets CPUs of its own, or raise "
        "nodes.system_reserved in cluster.yaml and run the playbook.",
        waiver="For what comes and goes and does not matter. Each run's record says what speaks against "
        "comparing it.",
    ),
    "RT806": Explanation(
        meaning="Ray's files take much room: 10 sessions that are over, or 2 GiB of them; or 2 GiB in the "
        "session that runs, or in ROOT/logs. A stopped Ray leaves the logs of its last three sessions, and "
        "only those. At most 20,000 files are counted; beyond that the message says `at least`.",
        cause="Ray crashed or was killed, so that nobody cleaned up; objects that were spilled to the disk; "
        "workers that print a lot.",
        fix="`raytools doctor --fix` removes sessions that are over, but for the last three. Remove what "
        "else the message names, or restart Ray when nothing runs (`ansible-playbook playbooks/ray.yml`): "
        "what a stopped Ray leaves is cleaned.",
        waiver="While the logs of a crash are still wanted.",
    ),
    "RT807": Explanation(
        meaning="Ray's limit of processes and threads, its user's or that of a control group above, is low: "
        "below 4096 a warning, below 1024 an error. A worker has some thirty threads before it computes; at "
        "the limit, Ray reports that it cannot start threads, and workers die.",
        cause="Ray was started in a session or container with a limit (TasksMax of systemd, `--pids-limit` "
        "of docker, nproc of PAM).",
        fix="TasksMax=infinity in the unit (raytools' own has it) and in the slices above; `* - nproc 65536` "
        "in a file in /etc/security/limits.d where Ray is started from a log-in. Then restart Ray.",
        waiver="For clusters with few workers.",
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
    "RT903": Explanation(
        meaning="The node that serves the storage exports it to somebody who is no node of this cluster, or "
        "lets a client's root be root on it. Whoever can mount it can read and change results.",
        cause="A line in /etc/exports of before or by hand; a former node that is no longer in the "
        "inventory; another cluster that shares the directory.",
        fix="Remove the line and run `exportfs -ra`; raytools' own line is written by `ansible-playbook "
        "playbooks/storage.yml`.",
        waiver="Where others are meant to read the results: better export a copy to them, read-only.",
    ),
    "RT904": Explanation(
        meaning="The inventory, or ANSIBLE_HOST_KEY_CHECKING, tells ssh not to compare the host keys of "
        "nodes, or to believe new ones (accept-new). Whoever answers at a node's address is then taken for "
        "it, gets the token, and is handed what runs there. raytools itself always compares; Ansible would "
        "not.",
        cause="`-o StrictHostKeyChecking=no` or `UserKnownHostsFile=/dev/null` in ansible_ssh_common_args, "
        "as many recipes have it, because addresses of virtual machines are used again.",
        fix="Remove it. Compare a new key's fingerprint on the machine's console, then learn it once: "
        "`ssh-keyscan ADDRESS >> .raytools/ssh/known_hosts` (or ~/.ssh/known_hosts).",
        waiver="In a closed test network whose machines are made anew every day.",
    ),
    "RT905": Explanation(
        meaning="A node has another token than the head (or, if the head's may not be read, than the first "
        "node). Only the beginnings of their SHA-256 are compared and shown. A Ray that is started with the "
        "other token cannot join, and neither can who uses it.",
        cause="A token was made anew on one node only, or copied from another cluster; a node was not "
        "reached by the last playbook run.",
        fix="`ansible-playbook playbooks/ray.yml` brings the head's token to all nodes.",
        waiver="Never: the next restart of that node's Ray fails.",
    ),
    "RT906": Explanation(
        meaning="The controller, which is no node, reaches Ray on a node by an address that is not the "
        "cluster's own (the one ssh uses, where the inventory has another as raytools_address), or by a "
        "public address of the internet; or it reaches the dashboard, which is declared to listen on "
        "loopback only. Strangers may then reach it, too, and only the token keeps them from running code.",
        cause="Ray's GCS and raylets listen on all addresses of a machine, and no firewall or security group "
        "closes the public one.",
        fix="Allow the ports under ray.ports from the other nodes only. Where all nodes have a private "
        "network, set its addresses as raytools_address in the inventory. What is tried are the single "
        "ports, as they stand for the workers' range, too.",
        waiver="Where the controller sits in the same closed network as the second address, or the nodes "
        "have public addresses only and you rely on the token.",
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
judges what it found, and reports. It changes nothing unless asked to (`--fix`). A code keeps its meaning for
ever; scripts and waivers may rely on it. `raytools doctor --explain RT101` prints an entry of this page.

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

Some options, all of them in `raytools doctor --help`:

- `--only RT7xx,RT801` and `--skip RT105` choose checks; `--list` names them all.
- `-v` adds a line for each check that found nothing.
- `--wait 2m` looks again until nothing at or above the threshold is left, as after a reboot. With
  `--fix` what can be mended is mended first, and not waited for.
- `--fix` mends what is safe to mend, after showing it and asking (`--yes`: without): it ends what this
  cluster's dead Rays have left, processes and old sessions, sweeps killed runs, restarts the unit of a dead
  worker. It touches nothing that is not the cluster's own, and no head.
- `--bundle FILE.tar.gz` writes all that is known and the ends of the nodes' logs, for a bug report. The
  token, and what looks like a password, is removed.
- `--json` and `--junit FILE` are for programs.

Exit codes: 0 nothing at or above `--threshold` (default `error`), 1 findings, 2 could not run.
"""


def page() -> str:
    """docs/doctor.md."""
    levels = {check.code: check.level for check in CHECKS}
    sections = [_INTRODUCTION, "## All checks\n\n" + as_markdown(_titles(), levels) + "\n"]
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
