"""A sharing plan, here by KV group: who owns its distant scores, who follows whom, who sees its window only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from .model import Config

N_SINK, N_RECENT = 16, 240


@dataclass
class Plan:
    """score_layer and score_head (n_layer, n_head): the source of every head; itself for an owner, -1 for a local."""

    score_layer: np.ndarray
    score_head: np.ndarray
    n_sink: int = N_SINK
    n_recent: int = N_RECENT
    calibration: dict[str, object] = field(default_factory=dict)

    @classmethod
    def dense(cls, config: Config) -> Plan:
        layers, heads = np.indices((config.n_layer, config.n_head))
        return cls(layers, heads)

    def copy(self) -> Plan:
        return Plan(self.score_layer.copy(), self.score_head.copy(), self.n_sink, self.n_recent)

    def kind(self, layer: int, head: int) -> str:
        source = self.score_layer[layer, head]
        return "local" if source < 0 else "owner" if source == layer else "follower"

    def saving(self, config: Config, n: int) -> float:
        """The share of the cache saved at n tokens, K and V rows being of one size (docs/format.md)."""
        n_gqa = config.n_head // config.n_head_kv
        window = min(n, self.n_sink + self.n_recent)
        rows = 0
        for layer in range(config.n_layer):
            for group in range(config.n_head_kv):
                kinds = {self.kind(layer, head) for head in range(group * n_gqa, (group + 1) * n_gqa)}
                rows += n if "owner" in kinds else window
                rows += window if kinds == {"local"} else n
        return 1 - rows / (2 * n * config.n_layer * config.n_head_kv)

    def to_json(self) -> str:
        """The plan's JSON, one layer to a line."""
        n_layer, n_head = self.score_layer.shape
        head = {
            "version": 1,
            "enabled": True,
            "method": "custom",
            "distant": "scores",
            "n_sink": self.n_sink,
            "n_recent": self.n_recent,
            "n_layer": n_layer,
            "n_head": n_head,
            "skip_gate": 1.0,
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for key in ("score_layer", "score_head"):
            rows = ",\n".join("    " + json.dumps(row) for row in getattr(self, key).tolist())
            lines.append(f'  "{key}": [\n{rows}\n  ]')
        lines.append(f'  "calibration": {json.dumps(self.calibration, indent=2)}'.replace("\n", "\n  "))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        raw = json.loads(text)
        layer, head = np.array(raw["score_layer"]), np.array(raw["score_head"])
        return cls(layer, head, raw["n_sink"], raw["n_recent"], raw.get("calibration", {}))
