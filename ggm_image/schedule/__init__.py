"""Which sites each step touches, and how clean every site is before it.

Legend: `b` batch, `l` = height * width sites (row-major), `k` sites of a block.

The forward chain visits the sites in a fixed order, a block a step, every site once per sweep (arXiv
2405.17035: one site a step). After s of S sweeps every site has level a_s, with a_0 = 1 and a_S =
`final_level`; a step of sweep s leaves a site unchanged with probability keep = a_{s+1} / a_s. Hence in
closed form, before step t, in sweep s:

    level_{t,i} = a_{s+1} if site i was visited in this sweep, else a_s

Beyond the paper: blocks of several sites, chosen so that they are spread over the 2D grid (the error of a
block update is the dependence inside the block), any curve a_s, and schedules restricted to unknown sites.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm_image.schedule.orders import order_sites
    from ggm_image.schedule.registry import CURVES, ORDERS, SiteOrder
    from ggm_image.schedule.round_robin import Schedule, Step
    from ggm_image.schedule.training_state import (
        Query,
        TrainingState,
        random_levels,
        random_query,
        random_training_state,
    )

__all__ = [
    "CURVES",
    "ORDERS",
    "Query",
    "Schedule",
    "SiteOrder",
    "Step",
    "TrainingState",
    "order_sites",
    "random_levels",
    "random_query",
    "random_training_state",
]

# The registry is read by `--help`, which imports no torch.
_MODULES = {
    "orders": ("order_sites",),
    "registry": ("CURVES", "ORDERS", "SiteOrder"),
    "round_robin": ("Schedule", "Step"),
    "training_state": ("Query", "TrainingState", "random_levels", "random_query", "random_training_state"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"ggm_image.schedule.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
