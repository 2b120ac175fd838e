"""Records as reproduce leaves them, made up."""

from locallearn.config import digest, to_dict
from locallearn.thesis.protocols import Study

QUICK = Study("quick")
E2E_MACS = 70_062_720


def record(cell, seed=0, last_layer=90.0, ensemble=None, study=QUICK, speedups=(1.0, 1.0), **changes):
    """A record of a cell with these accuracies [%] and training and inference speed-ups."""
    config = study.config(cell, seed)
    ensemble = last_layer if ensemble is None else ensemble
    accuracy = {"last_layer": last_layer / 100, "ensemble": ensemble / 100}
    training, inference = speedups
    return {
        "cell": cell,
        "study": {"protocol": study.protocol},
        "seed": seed,
        "digest": digest(config),
        "data_source": "CIFAR-10",
        "accuracy": accuracy,
        "macs": {
            "e2e": E2E_MACS,
            "largest_node": round(E2E_MACS / training),
            "inference": round(E2E_MACS / inference),
        },
        "training_speedup": training,
        "inference_speedup": inference,
        "curve": [{"epoch": 1, "last_layer": 0.5, "ensemble": 0.5}, {"epoch": 2, **accuracy}],
        "config": to_dict(config),
        **changes,
    }


def published_records(layouts):
    """What the thesis prints in these tables, as records of seed 0."""
    found = {}
    for layout in layouts:
        for value in (value for row in layout.rows for value in row.values if value and value.published):
            found.setdefault(value.cell, {})[value.field] = float(value.published)
    records = []
    for cell, values in found.items():
        accuracy = {key: value for key, value in values.items() if key in ("last_layer", "ensemble")}
        accuracy.setdefault("last_layer", accuracy.get("ensemble"))
        speedups = (values.get("training_speedup", 1.0), values.get("inference_speedup", 1.0))
        records.append(record(cell, **accuracy, speedups=speedups))
    return records


def twice(found):
    """The records of every cell as if a second seed had reached the same, so that differences have no error."""
    return {
        cell: [*records, *({**record, "seed": record["seed"] + 1} for record in records)]
        for cell, records in found.items()
    }
