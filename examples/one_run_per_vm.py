"""A script over several tables: one limited run per VM at a time; those that did not end well are listed.

eval "$(.venv/bin/raytools env activate)"
python examples/one_run_per_vm.py
"""

import ray

import raytools

# linnerud has three labels at once, which the model cannot fit: one that fails
TABLES = ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"]


@raytools.remote(memory="2GiB", time="2m")
def score(table: str) -> float:
    from sklearn import datasets, ensemble, model_selection

    x, y = getattr(datasets, f"load_{table}")(return_X_y=True)
    kind = "Regressor" if y.dtype.kind == "f" else "Classifier"
    x, x_test, y, y_test = model_selection.train_test_split(x, y, random_state=0)
    model = getattr(ensemble, f"HistGradientBoosting{kind}")(max_iter=30).fit(x, y)
    return float(model.score(x_test, y_test))


ray.init(logging_level="error", log_to_driver=False)
waiting = {score.remote(table): table for table in TABLES}  # Ray starts one as soon as a VM's slot is free
failed = []
while waiting:
    [reference], _ = ray.wait(list(waiting))
    table, run = waiting.pop(reference), ray.get(reference)
    print(f"{table:15} {run.outcome:8} {run.record['used']['wall_s']:6.1f} s   score {run.value}", flush=True)
    if run.outcome != "ok":
        failed.append(f"{table} ({run.outcome}: {run.cause or run.record['message']})")
print("not ok:", ", ".join(failed) or "none")
