"""A workload of your own: `raytools smoke --workload primes --set limit=200000`. See docs/workloads.md."""

import dataclasses
import time

from raytools.errors import RaytoolsError
from raytools.workloads.base import Prepared, Reason, Speed, option, run_name


@dataclasses.dataclass(frozen=True)
class Parameters:
    limit: int = option(100_000, "primes below this number are counted")


class Primes:
    name, summary, scope = "primes", "counts primes, the same number in every slot", "slot"
    shown_metrics, shown_tables, speed = ("primes", "count_s"), (), Speed("count_s")
    Parameters = Parameters

    def check(self, parameters):  # on the controller, before anything else
        if parameters.limit < 3:
            raise RaytoolsError(f"limit is {parameters.limit}", expected="at least 3")

    def prepare(self, parameters, cache_dir):  # on the controller: bytes that every slot gets
        return Prepared(parameters)

    def time_s(self, parameters):  # limit of each run in seconds; None: runs.time of cluster.yaml
        return 600.0

    def run(self, parameters, context):  # in the slot; other packages are imported in here
        began, limit = time.monotonic(), parameters.limit
        found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))
        return {"primes": found, "count_s": time.monotonic() - began}

    def judge(self, parameters, runs):  # on the head; how the runs ended is judged already
        ended = [run for run in runs if run.metrics]  # of a run that got nowhere they are {}
        odd = [run for run in ended if run.metrics["primes"] != ended[0].metrics["primes"]]
        return [Reason(f"{run_name(run.record)}: found {run.metrics['primes']} primes") for run in odd]
