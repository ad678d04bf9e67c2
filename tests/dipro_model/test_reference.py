"""The network behind the image features against a slow one: numpy, one stay, one pair, one head, one query at a time.

It is written from the equations of the paper, knows neither batches nor masks, and reaches what the golden numbers do
not: length of stay, several fusion layers, attention over regions, intervals without an hour.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from dipro_model import ClassWeights, DiPro, Stay, collate, objective
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, REGIONS, Task

TASKS = list(Task)


class SlowDiPro:
    """One stay through the network, in float64."""

    def __init__(self, model: DiPro) -> None:
        self.weights = {name: value.numpy() for name, value in model.state_dict().items()}
        self.config = model.config

    def __call__(self, features: np.ndarray, stay: Stay) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
        """Logits, auxiliary terms without class weights, attention over regions [output, pair, region]."""
        frames, regions = features.shape[:2]
        pairs = range(frames - 1)
        both = [[np.concatenate([features[i, r], features[i + 1, r]]) for r in range(regions)] for i in pairs]
        reverse = [[np.concatenate([features[i + 1, r], features[i, r]]) for r in range(regions)] for i in pairs]
        static = self.project("static", both)
        dynamic = self.project("dynamic", both)
        auxiliary = self.auxiliary(
            static, dynamic, self.project("static", reverse), self.project("dynamic", reverse), stay
        )
        logits, attention = self.fuse(static, dynamic, stay)
        return logits, auxiliary, attention

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def batch_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean, var = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        return (x - mean) / np.sqrt(var + 1e-5) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def project(self, kind: str, pairs: list[list[np.ndarray]]) -> np.ndarray:
        name = f"disentangle.{kind}"
        return np.array(
            [
                [
                    self.batch_norm(f"{name}.3", self.linear(f"{name}.2", gelu(self.linear(f"{name}.0", x))))
                    for x in regions
                ]
                for regions in pairs
            ]
        )

    def auxiliary(
        self,
        static: np.ndarray,
        dynamic: np.ndarray,
        reversed_static: np.ndarray,
        reversed_dynamic: np.ndarray,
        stay: Stay,
    ) -> dict[str, float]:
        pairs, regions = static.shape[:2]
        cosines = [
            static[i, r] @ dynamic[i, r] / (np.linalg.norm(static[i, r]) * np.linalg.norm(dynamic[i, r]))
            for i in range(pairs)
            for r in range(regions)
        ]
        changes = [((static[i + 1] - static[i]) ** 2).mean() for i in range(pairs - 1)]
        labels, total = stay.region_progression.numpy(), 0.0
        for k in range(len(DISEASES)):
            surprises = [
                surprise
                for i in range(pairs)
                for r in range(regions)
                for surprise in self.region_surprises(k, dynamic[i, r], reversed_dynamic[i, r], labels[i, r, k])
            ]
            total += sum(surprises) / len(surprises) if surprises else 0.0
        return {
            "orthogonal": float(np.mean(np.square(cosines))),
            "temporal": float(np.mean(changes)) if changes else 0.0,
            "static": float(np.mean((static - reversed_static) ** 2)),
            "dynamic": total,
        }

    def region_surprises(self, k: int, forward: np.ndarray, reverse: np.ndarray, label: int) -> Iterator[float]:
        if label == NOT_MENTIONED:
            return
        name = f"disentangle.progression_heads.{k}"
        opposite = {0: 1, 1: 0, 2: 2}[int(label)]
        for x, target in ((forward, int(label)), (reverse, opposite)):
            logits = self.linear(f"{name}.2", relu(self.linear(f"{name}.0", x)))
            yield float(np.log(np.exp(logits).sum()) - logits[target])

    def attention(
        self, name: str, query: np.ndarray, keys: np.ndarray, values: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One query; the answer, and the weight of each key as mean over heads."""
        heads, width = self.config.num_heads, len(query)
        size = width // heads
        weight, shift = self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"]
        q = weight[:width] @ query + shift[:width]
        k = [weight[width : 2 * width] @ key + shift[width : 2 * width] for key in keys]
        v = [weight[2 * width :] @ value + shift[2 * width :] for value in values]
        answer, looks = np.zeros(width), np.zeros(len(keys))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.array([q[part] @ key[part] / math.sqrt(size) for key in k]) + bias
            share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            answer[part] = sum(s * value[part] for s, value in zip(share, v, strict=True))
            looks += share / heads
        return self.linear(f"{name}.out_proj", answer), looks

    def encoder(self, name: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        zero = np.zeros(len(tokens))
        answers = [self.attention(f"{name}.self_attn", token, tokens, tokens, zero) for token in tokens]
        out = []
        for token, (answer, _) in zip(tokens, answers, strict=True):
            x = self.layer_norm(f"{name}.norm1", token + answer)
            hidden = self.linear(f"{name}.linear2", relu(self.linear(f"{name}.linear1", x)))
            out.append(self.layer_norm(f"{name}.norm2", x + hidden))
        return np.array(out), np.array([looks for _, looks in answers])

    def global_ehr(self, stay: Stay) -> np.ndarray:
        tokens = [self.weights["global_ehr.token"][0]]
        for position, row in enumerate(stay.ehr.numpy()):
            embedded = self.layer_norm("global_ehr.embedding.1", self.linear("global_ehr.embedding.0", row))
            tokens.append(embedded + sinusoids(position, self.config.width))
        return self.encoder("global_ehr.encoder", np.array(tokens))[0][1:]

    def local_ehr(self, tokens: np.ndarray, hours: np.ndarray, start: float, end: float) -> np.ndarray:
        """Answers of the interval's hours to every hour; no row where no hour lies inside."""
        inside = [j for j, hour in enumerate(hours) if start <= hour <= end]
        if not inside:
            return np.zeros((0, self.config.width))
        bias = np.array([-abs(hours[j] - (start + end) / 2) for j in inside])
        answers = []
        for hour in hours:
            since, until = hour - start, end - hour
            times = np.array([since, until, 1 / (1 + math.exp(-since * until))])
            query = self.linear("local_ehr.time_embedding.2", gelu(self.linear("local_ehr.time_embedding.0", times)))
            answers.append(self.attention("local_ehr.attention", query, tokens[inside], tokens[inside], bias)[0])
        return np.array(answers)

    def local_fusion(self, layer: int, regions: np.ndarray, local: np.ndarray) -> np.ndarray:
        name, width = f"local_fusion.{layer}", self.config.width
        projected = [self.linear(f"{name}.region_proj", region) for region in regions]
        seen = [self.linear(f"{name}.ehr_proj", hour) for hour in local]
        keys = np.array([x[width : 2 * width] for x in projected] + [x[:width] for x in seen])
        values = np.array([x[2 * width :] for x in projected] + [x[width:] for x in seen])
        zero = np.zeros(len(keys))
        return np.array(
            [
                self.layer_norm(
                    f"{name}.norm", region + self.attention(f"{name}.attn", x[:width], keys, values, zero)[0]
                )
                for region, x in zip(regions, projected, strict=True)
            ]
        )

    def fuse(self, static: np.ndarray, dynamic: np.ndarray, stay: Stay) -> tuple[np.ndarray, np.ndarray]:
        tokens, hours = self.global_ehr(stay), stay.ehr_hours.numpy()
        fused = []
        for regions, (start, end) in zip(dynamic, stay.intervals.tolist(), strict=True):
            local = self.local_ehr(tokens, hours, start, end)
            for layer in range(self.config.num_transformer_layers // 2):
                regions = self.local_fusion(layer, regions, local)
            fused.extend(regions)
        fused, zero = np.array(fused), np.zeros(len(fused))
        ehr = [
            self.layer_norm(
                "global_fusion.region_norm",
                token + self.attention("global_fusion.region_attention", token, fused, fused, zero)[0],
            )
            for token in tokens
        ]
        classes = self.weights["global_fusion.class_tokens"][0]
        sequence = np.concatenate([classes, fused, np.array(ehr).reshape(-1, self.config.width)])
        looks = []
        for layer in range(self.config.num_fusion_layers):
            sequence, weights = self.encoder(f"global_fusion.layers.{layer}", sequence)
            looks.append(weights[: len(classes), len(classes) : len(classes) + len(fused)])
        logits = [self.predict(k, sequence[k], static, stay) for k in range(len(classes))]
        return np.array(logits), np.mean(looks, axis=0).reshape(len(classes), *dynamic.shape[:2])

    def predict(self, k: int, token: np.ndarray, static: np.ndarray, stay: Stay) -> np.ndarray:
        person = relu(self.linear("static_fusion.demographics.0", stay.demographics.numpy()))
        keys = np.array([self.group(x) for x in [*static.reshape(-1, self.config.width), person]])
        answer, _ = self.attention("static_fusion.attention", token, keys, keys, np.zeros(len(keys)))
        hidden = relu(self.linear(f"heads.{k}.0", self.layer_norm("static_fusion.norm", token + answer)))
        return self.linear(f"heads.{k}.3", hidden)

    def group(self, x: np.ndarray) -> np.ndarray:
        scores = np.exp(x @ self.weights["static_fusion.groups.assignment"])
        return scores / scores.sum() @ self.weights["static_fusion.groups.vectors"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def sinusoids(position: int, width: int) -> np.ndarray:
    """In single precision, as the network has them."""
    angles = [np.float32(position) * np.float32(10000.0 ** (-2 * i / width)) for i in range(width // 2)]
    return np.array([value for angle in angles for value in (np.sin(angle), np.cos(angle))], dtype=np.float64)


@pytest.mark.parametrize("task", TASKS)
def test_a_padded_batch_gives_what_the_slow_network_gives_for_each_stay(
    make_model: Callable[..., DiPro], make_stay: Callable[..., Stay], task: Task
) -> None:
    model = make_model(task, num_fusion_layers=2)
    stays = [
        make_stay(task=task, frames=2, steps=4, seed=1),
        make_stay(task=task, frames=3, steps=13, seed=2),
        make_stay(task=task, frames=3, steps=0, seed=3),
    ]
    slow = SlowDiPro(model)
    with torch.no_grad():
        output = model(collate(stays))
    for index, stay in enumerate(stays):
        with torch.no_grad():
            features = model.backbone(stay.regions).numpy()
            alone = model(collate([stay]))
        logits, auxiliary, attention = slow(features, stay)
        pairs = len(stay.intervals)
        # Single-precision positions may differ by a rounding, hence not 1e-12.
        np.testing.assert_allclose(output.logits[index].numpy(), logits, rtol=0, atol=1e-7)
        np.testing.assert_allclose(output.region_attention[index, :, :pairs].numpy(), attention, rtol=0, atol=1e-8)
        assert not output.region_attention[index, :, pairs:].any()
        assert {name: value.item() for name, value in alone.auxiliary.items()} == pytest.approx(auxiliary, rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_no_hour_in_any_interval_is_no_local_context(
    make_model: Callable[..., DiPro], make_stay: Callable[..., Stay], task: Task
) -> None:
    model, stay = make_model(task), make_stay(task=task, frames=3, steps=5, seed=4)
    stay.intervals.add_(100.0)
    with torch.no_grad():
        features, output = model.backbone(stay.regions).numpy(), model(collate([stay]))
    logits, _, _ = SlowDiPro(model)(features, stay)
    np.testing.assert_allclose(output.logits[0].numpy(), logits, rtol=0, atol=1e-7)


def test_length_of_stay_objective(make_model: Callable[..., DiPro], make_stay: Callable[..., Stay]) -> None:
    model = make_model(Task.LENGTH_OF_STAY)
    stays = [make_stay(task=Task.LENGTH_OF_STAY, frames=2 + seed % 2, seed=seed) for seed in range(3)]
    batch = collate(stays)
    with torch.no_grad():
        output = model(batch)
        total, parts = objective(output, batch, model.config, ClassWeights())
    logits, labels = output.logits[:, 0].numpy(), [int(stay.label) for stay in stays]
    surprise = [math.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    assert parts["task"].item() == pytest.approx(np.mean(surprise), rel=1e-12)
    published = {"task": 10.0, "orthogonal": 0.001, "temporal": 0.1, "static": 0.5, "dynamic": 0.1}
    assert total.item() == pytest.approx(sum(published[name] * parts[name].item() for name in published), rel=1e-12)
    assert output.region_attention.shape == (3, 1, 2, len(REGIONS))
