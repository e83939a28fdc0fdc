"""What can be compared: how filters are chosen, what training surrounds it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """One way to a smaller network. By default: trained weights, L1, fine-tuning."""

    about: str  # In words, for the plan.
    prunes: bool = True  # Whether anything is pruned at all.
    # Before training: which criterion of the library scores the filters of the random network; None
    # chooses by the L1 norm of trained weights.
    criterion: Literal["ntk_sap", "snip", "synflow"] | None = None
    rounds: int | None = None  # Of that criterion; None for what the configuration says.
    # Training with a penalty before the filters are removed.
    regulariser: Literal["tpp", "greg1", "kernorth", "orthconv"] | None = None
    orthp: bool = False  # The remaining kernels are made orthogonal after that.
    redraw: bool = False  # The pruned architecture gets fresh random weights.

    @property
    def from_scratch(self) -> bool:
        """Whether the small network starts untrained, and is trained as the dense one was."""
        return self.redraw or self.criterion is not None


METHODS: dict[str, Method] = {
    "dense": Method("the pretrained network itself", prunes=False),
    "l1": Method("filters of small L1 norm go, then fine-tuning"),
    "l1-orthp": Method("as l1, with the remaining kernels made orthogonal (OrthP)", orthp=True),
    "tpp": Method("filters of small L1 norm, decorrelated before they go (TPP)", regulariser="tpp"),
    "greg1": Method("filters of small L1 norm, growing L2 before they go", regulariser="greg1"),
    "kernorth-l1": Method("orthogonal kernels by a penalty, then as l1", regulariser="kernorth"),
    "orthconv-l1": Method(
        "orthogonal convolutions by a penalty, then as l1", regulariser="orthconv"
    ),
    "scratch": Method("the architecture that l1 leaves, trained from fresh weights", redraw=True),
    "ntk-sap": Method("filters pruned before training by NTK-SAP", criterion="ntk_sap"),
    "snip": Method("filters pruned before training by SNIP", criterion="snip", rounds=1),
    "synflow": Method("filters pruned before training by SynFlow", criterion="synflow", rounds=100),
}
"""By the name that `--method` and `--compare` take."""
