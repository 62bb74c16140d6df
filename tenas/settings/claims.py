"""Claims, published or the project's own, and the runs that test them. No torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tenas.settings.base import Flag, Model, Real, Whole


class Correlation(Model):
    """The Kendall tau of a study, oriented so that more is better."""

    measure: str
    """Measure of the study."""
    accuracy: str
    """Accuracy, by data set and part."""


class Claim(Model):
    """A claim of one of four kinds: a figure of runs, runs above baselines of equal cost, an order of runs, a correlation."""

    says: str
    """The claim in a sentence."""
    source: str
    """Where it is published, or when it was set."""
    by: Literal["paper", "tenas"] = "paper"
    """Author of the claim, the paper or this project; the page lists them separately."""
    value: Real | None = None
    """The claimed figure; more is better."""
    spread: Annotated[Real, Field(gt=0)] | None = None
    """Its standard deviation over the seeds."""
    seeds: Annotated[Whole, Field(ge=2)] | None = None
    """Number of seeds behind the mean."""
    tolerance: Annotated[Real, Field(gt=0)] | None = None
    """For a figure without a spread: by how much the result may fall short of it."""
    accuracy: str | None = None
    """Column of a run's summary, in %."""
    runs: Annotated[list[str], Field(min_length=1)] | None = None
    """Runs (or studies) that test the claim."""
    trained: Flag = True
    """Whether it is about the results of the runs; otherwise about their best cells before short trainings, by the table."""
    above: Literal["baselines"] | None = None
    """``baselines``: the runs must have a higher mean accuracy than each baseline of equal cost."""
    better: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)] | None = None
    """Pairs of runs; the first must have the higher mean accuracy."""
    correlation: Correlation | None = None
    """The claimed correlation."""

    @model_validator(mode="after")
    def _belongs_together(self) -> "Claim":
        needs = {
            "spread": ("seeds", "value"), "seeds": ("spread", "value"), "tolerance": ("value",), "correlation": ("runs", "value"),
            "value": ("runs",), "better": ("accuracy",), "above": ("runs", "accuracy"),
        }  # fmt: skip
        for key, others in needs.items():
            for other in others:
                if getattr(self, key) is not None and getattr(self, other) is None:
                    raise PydanticCustomError("needs", "{key!r} also needs {other!r}", {"key": key, "other": other})
        if self.runs and self.above is None and self.value is None:
            raise PydanticCustomError("needs", "'runs' also needs 'value' or 'above'")
        kinds = [self.accuracy and self.runs, self.accuracy and self.better, self.correlation and self.runs]
        if sum(map(bool, kinds)) != 1:
            raise PydanticCustomError(
                "kinds", "a claim has 'accuracy' and 'runs', or 'accuracy' and 'better', or 'correlation' and 'runs'"
            )
        if self.above is not None and self.value is not None:
            raise PydanticCustomError("above", "'above' takes the place of 'value'")
        if not self.trained and not (self.accuracy and self.runs):
            raise PydanticCustomError("trained", "'trained' goes with 'accuracy' and 'runs'")
        return self


class Claims(Model):
    """A file of claims."""

    configurations: list[str] = []
    """Configurations with the settings of the named runs and studies: a run of that name with other settings does not test the
    claims. Empty: any run of the name does."""
    claims: Annotated[dict[str, Claim], Field(min_length=1)]
    """Claims by name."""
