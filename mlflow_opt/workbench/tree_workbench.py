"""Pruned variants of a model of trees, made one way after another and added to a session: as far as a loss goes, and half as far."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mlflow_opt.export import exporting
from mlflow_opt.models import Model
from mlflow_opt.records import Param, Variant
from mlflow_opt.runs import candidates
from mlflow_opt.session import Session
from mlflow_opt.tables import learner_files, learners
from mlflow_opt.tables.held_out import table
from mlflow_opt.tables.learners import Fitted, Learner
from mlflow_opt.trees.leaf_refits import refined, subsampled
from mlflow_opt.trees.tree_graphs import scores_of
from mlflow_opt.trees.tree_pruning import LeafPruner, Point, Ruler, facts_of, rounds_curve, shortened, smallest
from mlflow_opt.trees.tree_refits import Setting, cheapest, hold_out, params_of, refined_smaller, trained_smaller
from mlflow_opt.workbench import tree_curves

logger = logging.getLogger(__name__)

# A curve on few rows flatters, so every way is also gone for half of the loss only.
_PARTS = (1.0, 0.5)
# Few large steps on parts of the rows come out better or worse by chance.
_SEEDS = 3


def prune_trees(work: Session, way: str, allowed: float) -> None:
    """Add every variant that the user asks for, beside `runtime_only`, and draw the curves that they were chosen from.

    Args:
        work: the session.
        way: `rounds`, `leaves`, `depth`, `refit` or `all`.
        allowed: loss of the headline metric on validation rows.

    Raises:
        ValueError: the model has no trees.
    """
    trees = TreeWorkbench(work, allowed)
    for name, go in {"rounds": trees.cut_rounds, "leaves": trees.cut_leaves, "depth": trees.cut_depth, "refit": trees.refit}.items():
        if way in ("all", name):
            go()
    tree_curves.publish(work.parent.run_id, trees.curves, work.headline, allowed)


class TreeWorkbench:
    """Makes pruned variants and remembers the curves that they were chosen from."""

    def __init__(self, work: Session, allowed: float) -> None:
        """Compile the model as it is, which is the first variant, and count which of its leaves the train rows reach.

        Args:
            work: the session.
            allowed: loss of the headline metric on validation rows.

        Raises:
            ValueError: the model has no trees.
        """
        self.work, self.allowed = work, allowed
        self.curves: dict[str, list[Point]] = {}
        graph = exporting.to_onnx(work.model, work.example, work.task)
        self.pruner = LeafPruner(graph, table(work.split.train))
        own = (work.own,) if work.own else ()
        valid = work.split.calibration
        self.ruler = Ruler(table(valid), valid.labels, work.task, work.headline, own, work.model.threshold)
        self._reference = self.ruler.judge(scores_of(graph, self.ruler.rows))
        self._names: set[str] = set()
        self._add("runtime_only", work.dropin("runtime_only", graph), {"method": "none"})

    def cut_rounds(self) -> None:
        """Keep the first rounds of the model as it is."""
        learner = self._learner("rounds")
        if learner is None:
            return
        native = learners.native_of(self.work.model).runtime
        fitted = Fitted(getattr(native, "core", native.native), learner.columns, learner.categories, 0.0, learner.threshold)
        curve = rounds_curve(fitted, self.ruler, self._reference)
        for size in self._sizes("rounds", curve, whole=curve[0].size if curve else 0):
            name = f"rounds_{size:.0f}"
            if self._is_new(name):
                self._add(name, self.work.refitted(name, shortened(fitted, int(size))), {"method": "rounds", "rounds": int(size)})

    def cut_leaves(self) -> None:
        """Merge leaves of the model as it is."""
        for share in self._sizes("leaves", self.pruner.share_curve(self.ruler, self._reference)):
            self._add_cut(f"leaves_{100 * share:.0f}", self.pruner, {"method": "leaves", "leaf_share": share}, share=share)

    def cut_depth(self) -> None:
        """Cut the trees of the model at a depth."""
        for depth in self._sizes("depth", self.pruner.depth_curve(self.ruler, self._reference), whole=self.pruner.depth):
            self._add_cut(f"depth_{depth:.0f}", self.pruner, {"method": "depth", "depth": int(depth)}, depth=int(depth))

    def refit(self) -> None:
        """Train the model again with larger steps and smaller trees, learn leaves together, and merge leaves of the cheapest that holds."""
        learner = self._learner("refit")
        if learner is None:
            return
        train = self.work.split.train
        rows, labels, ruler = hold_out(table(train), train.labels, self.ruler)
        leaves = max(2, round(self.pruner.leaves / self.pruner.trees))
        tried = list(trained_smaller(learner, rows, labels, ruler, leaves))
        for setting, curve, _ in tried:
            self.curves["refit_" + ("as_it_is" if not setting.params else _shown(setting))] = curve
        for part in _PARTS:
            chosen = cheapest(tried, part * self.allowed)
            if chosen is None:
                logger.info("No training with larger steps or smaller trees is cheaper within a loss of %.4g.", part * self.allowed)
            else:
                self._add_refit(learner, chosen)
        for setting, price in refined_smaller(learner, rows, labels, ruler, tried, [part * self.allowed for part in _PARTS]):
            self._add_refined(learner, setting, price)

    def _add_refit(self, learner: Learner, setting: Setting) -> None:
        name, train = f"refit_{_shown(setting)}", self.work.split.train
        if self._is_new(name):
            given = params_of(learner, setting)
            self._add_trained(name, learner.fit(table(train), train.labels, params=given), {"method": "refit", **given})

    def _add_refined(self, learner: Learner, setting: Setting, price: float) -> None:
        """Train a setting on all train rows and learn its leaves together; of several seeds the best on calibration and selection rows."""
        train, given = self.work.split.train, params_of(learner, setting) | subsampled(learner.params())
        seen, made = (self.work.split.calibration, self.work.split.selection), []
        rows = pd.concat([table(part) for part in seen], ignore_index=True)
        ruler = replace(self.ruler, rows=rows, labels=np.concatenate([part.labels for part in seen]))
        for seed in range(self.work.seed, self.work.seed + _SEEDS):
            fitted = learner.fit(table(train), train.labels, params={**given, "random_state": seed})
            better = refined(fitted, table(train), train.labels, self.work.task, price)
            made.append((-ruler.judge(better.scores(rows)).headline, seed, better))
        _, seed, best = min(made, key=lambda one: one[:2])
        told = {"method": "refit, leaves learnt together", **given, "random_state": seed, "leaf_price": price}
        self._add_trained(f"refined_{_shown(setting)}", best, told)

    def _add_trained(self, name: str, fitted: Fitted, told: Mapping[str, Param]) -> None:
        """Add a newly trained model, and once more with its leaves merged."""
        made = self.work.refitted(name, fitted)
        self._add(name, made, told)
        pruner = LeafPruner(exporting.to_onnx(made, self.work.example, self.work.task), table(self.work.split.train))
        for share in self._sizes(f"{name}_leaves", pruner.share_curve(self.ruler, self._reference))[:1]:
            params = {**told, "method": f"{told['method']}, leaves merged", "leaf_share": share}
            self._add_cut(f"{name}_leaves_{100 * share:.0f}", pruner, params, made, share=share)

    def _sizes(self, way: str, curve: Sequence[Point], whole: float = math.inf) -> list[float]:
        """Choose sizes below the whole, for all of the loss and for half of it; none if the curve never holds."""
        if not curve:
            logger.info("The model is no sequence of trees, so %s is left out.", way)
            return []
        self.curves[way] = list(curve)
        largest = max(curve, key=lambda point: point.size)
        found = [smallest(curve, part * self.allowed) for part in _PARTS if largest.lost <= part * self.allowed]
        return [size for size in dict.fromkeys(found) if size < whole]

    def _learner(self, way: str) -> Learner | None:
        try:
            return learners.learner_of(self.work.model)
        except ValueError as why:
            self.work.findings.append(f"The way {way} is left out: {why}")
            return None

    def _is_new(self, name: str) -> bool:
        return name not in self._names

    def _add_cut(
        self, name: str, pruner: LeafPruner, params: Mapping[str, Param], source: Model | None = None, *, share: float = 1.0, depth: int = 0
    ) -> None:
        """Add a variant with fewer leaves, which carries for later training what its source carries."""
        graph, bound = pruner.cut(share, depth)
        if not self._is_new(name):
            return
        made = self.work.dropin(name, graph)
        if source is not None:
            learner_files.carry(source, made.path)
        self._add(name, replace(made), {**params, "most_change_of_sum": bound})

    def _add(self, name: str, model: Model, params: Mapping[str, Param]) -> None:
        self._names.add(name)
        self.work.add(Variant(name, model, params))
        graph = exporting.to_onnx(model, self.work.example, self.work.task)
        candidates.note(self.work.candidates[-1], facts_of(graph, table(self.work.split.calibration)))


def _shown(setting: Setting) -> str:
    """Name a setting by its rounds and the leaves of its trees."""
    leaves = next((value for name, value in setting.params.items() if "leaf" in name or "leaves" in name), "own")
    return f"{setting.rounds}x{leaves}"
