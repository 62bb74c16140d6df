"""Types of the stages' parameters, as the command line reads them."""

from typing import Annotated, Any, Literal

# A whole number from 1; a seed; shard i of S; a mapping given as JSON; where to compute; a number of cores, or all.
Count = Annotated[int, "count"]
Seed = Annotated[int, "seed"]
Shard = Annotated[tuple[int, int], "shard"]
Json = Annotated[dict[str, Any], "json"]
Cores = Annotated[int | Literal["all"], "cores"]
Device = Literal["auto", "cpu", "cuda"]
