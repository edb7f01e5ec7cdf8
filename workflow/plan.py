"""What each job depends on: the config, checked and cut into the settings of the stages.

A rule's only params entry is the canonical JSON of the settings made here, so a job runs again
exactly when a setting that its result depends on has changed. Editing the library reruns nothing by
itself: raise the
stage's number in ALGORITHM together with a change of its results.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from apm_core.errors import ConfigError
from apm_core.methods import entry
from apm_core.settings.names import names_in
from apm_core.settings.text import canonical

ALGORITHM = {
    "prepare": 1,
    "teachers": 1,
    "distill": 3,
    "merge": 2,
    "evaluate": 1,
    "ceiling": 1,
    "nas_proxy": 1,
    "nas_reference": 1,
    "nas": 1,
    "collect": 1,
}
DATASETS = names_in("data.sources")
WITH_WIDTH = ("convnet", "resnet18")  # as apm_core.nets has it, which loads torch
POOLS = ("teachers", "aligned_teachers", "experts", "flat_experts")
NOT_OPTIONS = {"rounds", "recipe", "network", "labels", "label_epoch"}  # keys of a method for Plan
DEVICES = Path("/dev")
LONGEST = 400  # characters of a message about one value
Settings = dict[str, Any]


def check_schema(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raise ConfigError, one line that names the key, for the first violation of `schema`."""
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: list(e.path))
    if errors:
        raise ConfigError(_one_line(errors[0]))
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config: {key}: {value} is not a finite number")


def _leaves(value: Any, *path: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - config values
    if isinstance(value, Mapping | list):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in inner:
            yield from _leaves(item, *path, str(key))
    else:
        yield ".".join(path), value


def _one_line(error: Any) -> str:  # noqa: ANN401 - jsonschema.ValidationError
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = next(name for name in error.instance if name not in known)
        full = f"{key}.{unknown}" if key else unknown
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"config: {full}: there is no such key; {hint}"
    found = error.message
    if len(found) > LONGEST:  # it quotes the value
        found = f"{found[: LONGEST // 2]} ... {found[-LONGEST // 2 :]}"
    message = f"config: {key}: {found}"
    value = error.instance
    if error.validator == "type" and isinstance(value, str) and _is_number(value):
        message += f" (YAML reads {value} as text: write {float(value):.1e} with a point)"
    description = error.schema.get("description")
    return message + (f"; {description}" if description else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def gpu_here() -> bool:
    """Whether this machine has the device files of a GPU; torch would take seconds to say it."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()


@dataclass(frozen=True)
class Plan:
    """The stages of one config. Every method returns the settings of one job as canonical JSON."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        c = self.config
        if c["dataset"]["source"] is None and c["dataset"]["name"] not in DATASETS:
            raise ConfigError(
                f"config: dataset.source: null means dataset.name, and {c['dataset']['name']!r} is"
                f" none of {', '.join(DATASETS)}: set dataset.source"
            )
        for method in c["distill"]["methods"]:
            self._check_epochs(method)
        if c["ipc"] % c["distill"]["shards"]:
            raise ConfigError(
                f"config: distill.shards: {c['distill']['shards']} does not divide ipc: {c['ipc']}"
            )
        for pool in POOLS:
            if c[pool]["n"] % c[pool]["per_job"]:
                raise ConfigError(
                    f"config: {pool}.n: {c[pool]['n']} is not a multiple of"
                    f" {pool}.per_job: {c[pool]['per_job']}"
                )
        unused = set(c["evaluate"]["overrides"]) - set(self.architectures)
        if unused:
            raise ConfigError(
                f"config: evaluate.overrides: {unused.pop()} is not in evaluate.architectures"
            )
        for network, override in c["evaluate"]["overrides"].items():
            if "width" in override and network not in WITH_WIDTH:
                raise ConfigError(
                    f"config: evaluate.overrides.{network}.width: {' and '.join(WITH_WIDTH)} alone"
                    " can be made narrower or wider"
                )
        if c["nas"]["networks"] and c["nas"]["reference"]["source"] == "table":
            for key in ("table", "column"):
                if not c["nas"]["reference"][key]:
                    raise ConfigError(f"config: nas.reference.{key}: needed with source: table")

    def _check_epochs(self, method: str) -> None:
        """Raise ConfigError when `method` would match epochs that its experts do not have."""
        pool, options = entry(method).needs, self.config["methods"].get(method, {})
        if pool in ("experts", "flat_experts"):
            first, more = options["start_below"] - 1, options["expert_epochs"]
            if first + more > self.config[pool]["epochs"]:
                raise ConfigError(
                    f"config: methods.{method}.start_below: from epoch {first}, {more} epochs on,"
                    f" is beyond {pool}.epochs: {self.config[pool]['epochs']}: lower the one or"
                    " raise the other"
                )

    @property
    def methods(self) -> list[str]:
        """Methods to compare, in the order of the results."""
        return list(self.config["distill"]["methods"])

    @property
    def architectures(self) -> list[str]:
        """Architectures to evaluate."""
        return list(self.config["evaluate"]["architectures"])

    @property
    def shard_ipc(self) -> int:
        """Images per class of one shard."""
        return self.config["ipc"] // self.config["distill"]["shards"]

    def groups(self, pool: str) -> range:
        """Numbers of the jobs that train one of the POOLS."""
        return range(self.config[pool]["n"] // self.config[pool]["per_job"])

    @property
    def protocols(self) -> list[tuple[str, str]]:
        """Pairs (architecture, protocol) of each method's evaluation."""
        evaluate = self.config["evaluate"]
        own = [(name, "own") for name in self.architectures]
        hard = [(name, "hard") for name in evaluate["hard_labels"]]
        return own + hard + [(name, "plain") for name in evaluate["plain"]]

    def check_target(self, dataset: str, ipc: str) -> None:
        """Raise ConfigError when a results file is asked for that this config does not describe."""
        name, number = self.config["dataset"]["name"], self.config["ipc"]
        if (dataset, ipc) != (name, str(number)):
            raise ConfigError(
                f"results/{dataset}_ipc{ipc}.json: the config in use makes"
                f" results/{name}_ipc{number}.json: add --configfile"
                f" presets/{dataset}_ipc{ipc}.yaml, or set dataset.name and ipc"
            )

    def prepare(self) -> str:
        """Settings of the data stage."""
        dataset = dict(self.config["dataset"])
        dataset["source"] = dataset["source"] or dataset.pop("name")
        dataset.pop("name", None)
        return self._text("prepare", dataset)

    def gpus(self, *, local: bool) -> int:
        """GPUs that a job asks for. On this machine (`local`) device auto asks for one if there is
        one, so that the jobs of a machine without run side by side; on a cluster always.
        """
        device = self.config["compute"]["device"]
        return 0 if device == "cpu" or (device == "auto" and local and not gpu_here()) else 1

    def pool(self, name: str) -> str:
        """Settings of a job of one of the POOLS; how many networks there are in all does not matter
        to one of them.
        """
        section = {k: v for k, v in self.config[name].items() if k != "n"}
        section |= self._network(self.config["teachers"]["network"])
        return self._text("teachers", {"snapshots": True, **section, **self._precision})

    def distill(self, method: str) -> str:
        """Settings of a shard; neither its number nor how many there are matter."""
        own, known = self._own(method), entry(method)
        options = {k: v for k, v in own.items() if k not in NOT_OPTIONS}
        settings: Settings = {"method": method, "options": options, "ipc": self.shard_ipc}
        if known.iterative:
            settings["rounds"] = own.get("rounds") or self.config["distill"]["rounds"]
        if known.iterative or known.control_of:
            settings |= {"recipe": self._recipe(method), **self._precision}
            if known.needs is None:
                network = own.get("network") or self.config["teachers"]["network"]
                settings |= self._network(network)
        return self._text("distill", settings)

    def merge(self, method: str) -> str:
        """Settings of the distilled set: its labels, and the recipe it is published with."""
        settings: Settings = {"method": method, "recipe": self._recipe(method)}
        if entry(method).labels == "pool":
            own, common = self._own(method), self.config["distill"]
            for key in ("labels", "label_epoch"):
                settings[key] = common[key] if own.get(key) is None else own[key]
        return self._text("merge", settings)

    def _own(self, method: str) -> Settings:
        return self.config["methods"].get(entry(method).control_of or method, {})

    def _recipe(self, method: str) -> Settings:
        own = self._own(method).get("recipe", {})
        return {**self.config["recipe"], **{k: v for k, v in own.items() if v is not None}}

    def evaluate(self, network: str, protocol: str) -> str:
        """Settings of the networks of one architecture under one protocol."""
        section = self.config["evaluate"]
        override = section["overrides"].get(network, {})
        settings = {
            "protocol": protocol,
            "epochs": override.get("epochs", section["epochs"]),
            "networks": override.get("networks", section["networks"]),
            "lr": override.get("lr"),  # None: that of the set
            "rates": override.get("rates", section["rates"]),
        }
        return self._text("evaluate", {**settings, **self._evaluated(network), **self._precision})

    def ceiling(self, network: str) -> str:
        """Settings of the networks trained on the full data."""
        recipe_keys = ("lr", "batch", "momentum", "weight_decay", "drop_at", "augment")
        recipe = {key: self.config["teachers"][key] for key in recipe_keys}
        section = {key: self.config["evaluate"]["ceiling"][key] for key in ("epochs", "networks")}
        return self._text(
            "ceiling", {**recipe, **section, **self._evaluated(network), **self._precision}
        )

    def nas_proxy(self) -> str:
        """Settings of the architectures trained on a distilled set."""
        return self._text("nas_proxy", self._nas_networks("proxy", "seeds"))

    def nas_reference(self) -> str:
        """Settings of the same architectures trained on the full data."""
        augment = self.config["teachers"]["augment"]
        return self._text("nas_reference", {**self._nas_networks("train"), "augment": augment})

    def nas(self) -> str:
        """Settings of the comparison of two rankings."""
        reference = self.config["nas"]["reference"]
        keys = ("source", "column") if reference["source"] == "table" else ("source",)
        return self._text("nas", {key: reference[key] for key in keys})

    def collect(self) -> str:
        """All settings of the run, for the record in the results file, without paths."""
        settings = {key: value for key, value in self.config.items() if key != "compute"}
        settings["dataset"] = {k: v for k, v in settings["dataset"].items() if k != "data_dir"}
        reference = settings["nas"]["reference"]
        table = reference["table"] and Path(reference["table"]).name
        settings["nas"] = {**settings["nas"], "reference": {**reference, "table": table}}
        return self._text("collect", {**settings, **self._precision})

    @property
    def _precision(self) -> Settings:
        return {"precision": self.config["compute"]["precision"]}

    def _network(self, name: str) -> Settings:
        # the teachers' width and depth are those of the ConvNet, whoever trains it
        own = self.config["teachers"] if name == "convnet" else {}
        return {"network": name, "width": own.get("width"), "depth": own.get("depth")}

    def _evaluated(self, name: str) -> Settings:
        override = self.config["evaluate"]["overrides"].get(name, {})
        own = {"width": override["width"]} if "width" in override else {}
        return {**self._network(name), **own}

    def _nas_networks(self, training: str, *more: str) -> Settings:
        section = self.config["nas"]
        keys = ("networks", "cells", "stem", "norm", *more)
        return {
            **{key: section[key] for key in keys},
            **section[training],
            **self._precision,
        }

    def _text(self, stage: str, settings: Settings) -> str:
        return canonical({**settings, "seed": self.config["seed"], "algorithm": ALGORITHM[stage]})
