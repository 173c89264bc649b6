"""GGM's baselines on the same network, each from its paper and as small as it can be, for
tools/experiments/compare_objectives.py and compare_text.py.

Legend: `b` batch, `l` sites, `v` codes, `a` a code; u = 1/v, uniform noise; level = P(a token is still clean).

    network(tokens (b, l), levels (b, l), sites (k,), labels (b,)) -> (b, k, v)

| method | the network's answer at a site | paper |
| --- | --- | --- |
| masked diffusion | log p(x_0 = a), the site masked | MaskGIT, arXiv 2202.04200; Halton order: arXiv 2503.17076 |
| MDLM | log p(x_0 = a), the site masked; random order | arXiv 2406.07524 |
| ReMDM | the masked network's; tokens are masked again while sampling | arXiv 2503.00307 |
| masked, self-criticised | the masked network's; half of the tokens is judged in every second call | see `critic` |
| D3PM | log p(x_0 = a), every token in view and noisy alike | arXiv 2107.03006: uniform noise, x_0-prediction |
| SEDD | log p_t(a at the site) / p_t(x_t), every token in view | arXiv 2310.16834: score entropy, uniform rates |
| GIDD | log p(x_0 = a), of tokens some are masked, some noisy | arXiv 2503.04482: its bound, dynamic weights |
| Duo | log p(x_0 = a), every token in view and noisy alike | arXiv 2506.10892: its bound, uniform noise |
| autoregressive | log p(x_0 = a), the tokens before it in view | the chain rule |

Where they differ from their papers: D3PM is trained by the cross-entropy of x_0 alone (its variational bound has the
same minimiser), and its step takes the mean of q(x_s | x_t, x_0) over p(x_0 | x_t), which is the exact posterior of a
site. Duo is trained without its curriculum, which needs Gaussian latents, and without distillation. GIDD's and Duo's
steps plug the network's distribution into q(x_s | x_t, x_0); their bounds are least at P(x_0 at a site | the other
sites' tokens), and with that the step is the exact posterior of a site too. Guidance acts on the network's answers for
all methods. tests/tools/test_baselines.py, test_interpolating.py, test_rivals.py and test_autoregressive.py show all
that by enumeration.
"""

from baselines.autoregressive import (
    AutoregressiveTrainer,
    CausalTransformer,
    autoregressive,
    autoregressive_costs,
    load_causal,
)
from baselines.critic import critic
from baselines.interpolating import (
    DuoTrainer,
    GIDDTrainer,
    MaskUniform,
    UniformState,
    ancestral,
    correct,
    interpolating_bound,
    interpolating_cost,
    plug_in_step,
)
from baselines.masked import MaskedTrainer, MDLMTrainer, any_order_bound, halton
from baselines.remdm import STRATEGIES, remasking_plan, remdm, remdm_bound, unmasking_share
from baselines.uniform import (
    D3PMTrainer,
    ScoreCriterion,
    SEDDTrainer,
    d3pm_log_score,
    d3pm_step,
    score_bound,
    score_entropy,
    sedd_step,
    tau_leap,
)
from ggm_image.schedule import CURVES

__all__ = [
    "CURVES",
    "STRATEGIES",
    "AutoregressiveTrainer",
    "CausalTransformer",
    "D3PMTrainer",
    "DuoTrainer",
    "GIDDTrainer",
    "MDLMTrainer",
    "MaskUniform",
    "MaskedTrainer",
    "SEDDTrainer",
    "ScoreCriterion",
    "UniformState",
    "ancestral",
    "any_order_bound",
    "autoregressive",
    "autoregressive_costs",
    "correct",
    "critic",
    "d3pm_log_score",
    "d3pm_step",
    "halton",
    "interpolating_bound",
    "interpolating_cost",
    "load_causal",
    "plug_in_step",
    "remasking_plan",
    "remdm",
    "remdm_bound",
    "score_bound",
    "score_entropy",
    "sedd_step",
    "tau_leap",
    "unmasking_share",
]
