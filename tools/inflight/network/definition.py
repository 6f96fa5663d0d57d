"""What a model family's file returns: the network, its facts and how checkpoint names map to parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from inflight.network.graph import Source
from inflight.network.module import Module


@dataclass(frozen=True)
class Facts:
    """Sizes of the network that tools and the batch manager need."""

    family: str
    vocabulary_size: int
    hidden_size: int
    max_positions: int


@dataclass(frozen=True)
class Definition:
    """A network and where its weights lie.

    checkpoint_names: parameter name -> stored tensor, both with "{layer}" where a name has the layer's index. A
        parameter that is not listed is stored under its own name.
    optional_prefix: checkpoints of the bare model leave it off their names.
    ignorable: regular expressions of stored tensors that the network rightly does not use.
    """

    network: Module
    facts: Facts
    checkpoint_names: Mapping[str, str | Source] = field(default_factory=dict)
    optional_prefix: str = ""
    ignorable: tuple[str, ...] = ()
