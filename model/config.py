"""What a model is, apart from its weights: sizes, names, units, normalisation.

Everything here is a frozen value, checked where it is made; `bundle` reads and writes it as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model.calendar import Calendar
from model.watch.rules import INPUTS, OUTPUTS, READS, SAYS, Rules

Task = Literal["series", "text", "watch"]
TASKS: tuple[Task, ...] = ("series", "text", "watch")

#: Largest magnitude of a normalised input. Beyond it the float32 input product of a gate can reach
#: inf - inf = NaN; a million standard deviations is no observation of anything.
MAX_NORMALISED = 1e6

#: Least width of quantiles, in deviations: what is estimated as less is no estimate.
LEAST_WIDTH = 0.01

#: Largest magnitude of a value that is watched: it has no fixed scale, but must be a float32
MAX_WATCHED = 1e30

#: Largest size of anything: a manifest's typing error must not exhaust the memory before it is noticed.
LARGEST = 100_000


@dataclass(frozen=True, slots=True)
class Signal:
    """One input or output of a series model.

    `mean` and `std` are in `unit`: normalised = (value - mean) / std.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a stacked LSTM and its head.

    input_size: numbers of one step that the network reads, after embedding and with what a calendar derives.
    hidden_size H, num_layers L: of the LSTM.
    output_size: values the head gives a lead (series: number of outputs; text: vocabulary size; watch:
    numbers of a distribution). leads: how many steps ahead the head predicts at once; row 0 is the next step.
    residual: the head's prediction is added to the current normalised value of the same signal, so that a
    head of zeros says "like now".
    rank: functions of the lead that the head combines, for heads of many leads; 0: each lead has weights of
    its own. quantiles: levels that are told beside the prediction, rising. spread: functions of the lead of
    which the width of the quantiles is made.
    """

    task: Task
    input_size: int
    hidden_size: int
    num_layers: int
    output_size: int
    leads: int = 1
    residual: bool = False
    rank: int = 0
    quantiles: tuple[float, ...] = ()
    spread: int = 0

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers", "output_size", "leads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
                raise ValueError(
                    f"architecture.{name} must be a whole number from 1 to {LARGEST}, not {value!r}"
                )
        if not isinstance(self.residual, bool):
            raise ValueError(f"architecture.residual must be true or false, not {self.residual!r}")
        if self.task not in TASKS:
            raise ValueError(f"architecture.task must be one of {', '.join(TASKS)}, not {self.task!r}")
        if self.task != "series" and (self.leads != 1 or self.residual):
            raise ValueError(f"a {self.task} model has one lead and no residual")
        if self.task == "watch" and (self.input_size, self.output_size) != (READS, SAYS):
            raise ValueError(f"a watch model has input_size {READS} and output_size {SAYS}")
        self._check_quantiles()

    def _check_quantiles(self) -> None:
        levels = self.quantiles
        if not isinstance(levels, list | tuple) or not all(
            isinstance(level, float) and 0 < level < 1 for level in levels
        ):
            raise ValueError(f"architecture.quantiles must be levels between 0 and 1, not {levels!r}")
        object.__setattr__(self, "quantiles", tuple(levels))  # JSON has lists
        if list(levels) != sorted(set(levels)):
            raise ValueError(f"architecture.quantiles must rise, not {levels!r}")
        for name in ("rank", "spread"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= self.leads:
                raise ValueError(
                    f"architecture.{name} must be a number from 0 to the {self.leads} leads, not {value!r}"
                )
        if bool(self.spread) != bool(levels):
            raise ValueError("architecture.quantiles and architecture.spread need each other")
        if self.task != "series" and (self.rank or levels):
            raise ValueError(f"a {self.task} model has no rank and no quantiles")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights file, by name. Rows of the LSTM's are the gates i, f, g, o."""
        H = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        if self.task == "text":
            shapes["embedding.weight"] = (self.output_size, self.input_size)
        for layer in range(self.num_layers):
            shapes[f"lstm.weight_ih_l{layer}"] = (4 * H, H if layer else self.input_size)
            shapes[f"lstm.weight_hh_l{layer}"] = (4 * H, H)
            shapes[f"lstm.bias_l{layer}"] = (4 * H,)
        rows = (self.rank or self.leads) * self.output_size
        shapes["head.weight"], shapes["head.bias"] = (rows, H), (rows,)
        if self.rank:
            shapes["head.basis"] = (self.leads, self.rank)
        if self.spread:
            rows = self.spread * self.output_size
            shapes["spread.weight"], shapes["spread.bias"] = (rows, H), (rows,)
            shapes["spread.basis"] = (self.leads, self.spread)
            shapes["spread.offsets"] = (len(self.quantiles), self.leads, self.output_size)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights."""
        total = 0
        for shape in self.shapes().values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as its users see it: architecture plus the meaning of its inputs and outputs.

    Series: `inputs` and `outputs` name the columns; with a `calendar` the last input is the time, in Unix
    seconds, of which the network reads what the calendar derives. Text: `vocabulary` is the string of
    characters whose index is the token; inputs and outputs are empty. Watch: one input, any series, and what
    is said of each of its values; what the network reads and says is `network`'s, and `rules` lie between
    the two.
    """

    architecture: Architecture
    inputs: tuple[Signal, ...] = ()
    outputs: tuple[Signal, ...] = ()
    vocabulary: str = ""
    rules: Rules | None = None
    calendar: Calendar | None = None

    def __post_init__(self) -> None:
        arch = self.architecture
        if (arch.task == "watch") != (self.rules is not None):
            raise ValueError("a watch model has rules, and no other has")
        if self.calendar is not None and arch.task != "series":
            raise ValueError(f"a {arch.task} model has no calendar")
        if arch.task == "text":
            if len(set(self.vocabulary)) != len(self.vocabulary):
                raise ValueError("the vocabulary names a character twice")
            if len(self.vocabulary) != arch.output_size:
                raise ValueError(
                    f"the vocabulary has {len(self.vocabulary)} characters, the head {arch.output_size}"
                )
            return
        watch = self.rules is not None
        derived = 0 if self.calendar is None else self.calendar.width - 1
        for what, signals, size in (
            ("inputs", self.inputs, len(INPUTS) if watch else arch.input_size - derived),
            ("outputs", self.outputs, len(OUTPUTS) if watch else arch.output_size),
        ):
            if len(signals) != size:
                told = " with this calendar" if derived and what == "inputs" else ""
                raise ValueError(f"{len(signals)} {what} are named, the architecture{told} has {size}")
            if len({s.name for s in signals}) != size:
                raise ValueError(f"the {what} name a signal twice")
            for s in signals:
                if not s.std > 0:
                    raise ValueError(f"{what}: std of {s.name!r} must be above 0, not {s.std!r}")
        if arch.residual and self.output_columns is None:
            raise ValueError("a residual head needs every output among the inputs, by name")

    @property
    def network(self) -> ModelSpec:
        """The network as it is stepped: of a watch model what stands between its rules, else the same."""
        if self.rules is None:
            return self
        inputs = tuple(Signal(f"feature_{n}") for n in range(READS))
        outputs = tuple(Signal(f"parameter_{n}") for n in range(SAYS))
        return ModelSpec(replace(self.architecture, task="series"), inputs, outputs)

    @property
    def time(self) -> Signal | None:
        """The input that a calendar is of."""
        return None if self.calendar is None else self.inputs[-1]

    @property
    def measured(self) -> tuple[Signal, ...]:
        """The inputs apart from the time."""
        return self.inputs if self.calendar is None else self.inputs[:-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what the network of a series model reads: what is measured, and behind it the calendar."""
        derived = () if self.calendar is None else self.calendar.columns
        return (*(s.name for s in self.measured), *derived)

    @property
    def output_width(self) -> int:
        """Numbers in a row of outputs, as a client sees them."""
        return len(self.outputs) or self.architecture.output_size

    @property
    def most(self) -> float:
        """Largest magnitude of a normalised input."""
        return MAX_NORMALISED if self.rules is None else MAX_WATCHED

    @property
    def output_columns(self) -> tuple[int, ...] | None:
        """For each output the measured input of the same name; None if one has none."""
        names = [s.name for s in self.measured]
        columns = tuple(names.index(s.name) for s in self.outputs if s.name in names)
        return columns if self.outputs and len(columns) == len(self.outputs) else None

    @property
    def closes_loop(self) -> bool:
        """Whether predictions can be fed back as inputs: text, or outputs that are all that is measured:
        the time goes on by itself."""
        if self.architecture.task == "text":
            return True
        columns = self.output_columns
        return columns is not None and sorted(columns) == list(range(len(self.measured)))
