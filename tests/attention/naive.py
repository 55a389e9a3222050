"""Every mechanism once more, as loops over pixels written from its definition.

Slow, in float64, and sharing nothing with the package but the weights.
"""

import math

import torch
import torch.nn.functional as F


def rows(tensor):
    return list(range(len(tensor)))


def pool_over(query, keys, values, scale, biases=None):
    """One query's weighted mean of the values."""
    scores = [scale * (query * key).sum() for key in keys]
    if biases is not None:
        scores = [score + bias for score, bias in zip(scores, biases, strict=True)]
    exps = [torch.exp(score - max(scores)) for score in scores]
    return sum(e * value for e, value in zip(exps, values, strict=True)) / sum(exps)


def linear(layer, vector):
    result = layer.weight.flatten(1) @ vector
    return result if layer.bias is None else result + layer.bias


def pixels(x):
    """(C, H, W) -> {(i, j): vector}."""
    return {(i, j): x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])}


def to_map(vectors, like):
    y = torch.empty(len(next(iter(vectors.values()))), *like.shape[1:], dtype=like.dtype)
    for (i, j), vector in vectors.items():
        y[:, i, j] = vector
    return y


def each(function):
    """Apply to each row of the batch."""
    return lambda module, *inputs: torch.stack(
        [function(module, *(x[b] for x in inputs)) for b in rows(inputs[0])]
    )


def gated(x, gate):
    return torch.stack([x[c] * gate[c] for c in rows(x)])


@each
def squeeze_excite(m, x):
    mean = torch.stack([x[c].sum() / x[c].numel() for c in rows(x)])
    return gated(x, torch.sigmoid(linear(m.excite, torch.relu(linear(m.squeeze, mean)))))


@each
def efficient_channel(m, x):
    mean, kernel = [x[c].sum() / x[c].numel() for c in rows(x)], m.conv.weight[0, 0]
    reach, gate = len(kernel) // 2, []
    for c in rows(x):
        near = [(c + k - reach, kernel[k]) for k in rows(kernel)]
        gate.append(torch.sigmoid(sum(w * mean[at] for at, w in near if 0 <= at < len(mean))))
    return gated(x, gate)


@each
def channel_gate(m, x):
    mean = torch.stack([x[c].sum() / x[c].numel() for c in rows(x)])
    largest = torch.stack([max(x[c].flatten()) for c in rows(x)])
    score = sum(linear(m.mlp[2], torch.relu(linear(m.mlp[0], v))) for v in (mean, largest))
    return gated(x, torch.sigmoid(score))


@each
def spatial_gate(m, x):
    kernel, norm = m.conv.weight[0], m.norm
    reach, gates = kernel.shape[1] // 2, torch.empty_like(x[0])
    for i, j in pixels(x):
        score = 0.0
        for (p, q), vector in pixels(x).items():
            a, b = p - i + reach, q - j + reach
            if 0 <= a < kernel.shape[1] and 0 <= b < kernel.shape[2]:
                score += kernel[0, a, b] * max(vector) + kernel[1, a, b] * vector.sum() / len(x)
        score = (score - norm.running_mean[0]) / torch.sqrt(norm.running_var[0] + norm.eps)
        gates[i, j] = torch.sigmoid(norm.weight[0] * score + norm.bias[0])
    return torch.stack([x[c] * gates for c in rows(x)])


def cbam(m, x):
    return spatial_gate(m.spatial, channel_gate(m.channel, x))


def fade_in(m, x):
    gamma = float(m.gamma)
    return (1 - gamma) * x + gamma * cbam(m.attention, x)


@each
def self_attention2d_released(m, x):
    at = pixels(x)
    key = {p: linear(m.key, v) for p, v in at.items()}
    value = {p: linear(m.value, v) for p, v in at.items()}
    cells = sorted({(i // 2, j // 2) for i, j in at})

    def pooled(vectors, cell):
        inside = [v for (i, j), v in vectors.items() if (i // 2, j // 2) == cell]
        return torch.stack(inside).max(0).values

    keys, values = ([pooled(vectors, cell) for cell in cells] for vectors in (key, value))
    y = {p: pool_over(linear(m.query, v), keys, values, 1.0) for p, v in at.items()}
    return x + m.gamma * to_map({p: linear(m.out, v) for p, v in y.items()}, x)


@each
def self_attention2d_plain(m, x):
    at = pixels(x)
    keys = [linear(m.key, v) for v in at.values()]
    values = [linear(m.value, v) for v in at.values()]
    return to_map({p: pool_over(linear(m.query, v), keys, values, 1.0) for p, v in at.items()}, x)


def heads_over(m, query, tokens, biases=None):
    """One query through multi-head attention over a list of tokens; biases are (h, K)."""
    width = len(query)
    d = width // m.heads
    weight, offset = m.qkv.weight, m.qkv.bias
    offset = torch.zeros(3 * width, dtype=weight.dtype) if offset is None else offset
    result = []
    for head in range(m.heads):
        q, k, v = (
            slice(part * width + head * d, part * width + (head + 1) * d) for part in (0, 1, 2)
        )
        keys = [weight[k] @ token + offset[k] for token in tokens]
        values = [weight[v] @ token + offset[v] for token in tokens]
        bias = None if biases is None else biases[head]
        result.append(
            pool_over(weight[q] @ query + offset[q], keys, values, 1 / math.sqrt(d), bias)
        )
    return linear(m.out, torch.cat(result))


@each
def multi_head(m, x):
    return torch.stack([heads_over(m, token, list(x)) for token in x])


@each
def multi_head_cross(m, query, source):
    return torch.stack([heads_over(m, token, list(source)) for token in query])


def axially(m, at):
    """Axial attention of {(i, j): vector}."""
    y = {}
    for (i, j), vector in at.items():
        row = [v for (p, _), v in at.items() if p == i]
        column = [v for (_, q), v in at.items() if q == j]
        y[i, j] = heads_over(m.row, vector, row) + heads_over(m.column, vector, column)
    return y


@each
def axial(m, x):
    return x + m.gamma * to_map(axially(m, pixels(x)), x)


def locally_globally(m, at):
    """Attention of {(i, j): vector} to windows and to the means of a g x g grid."""
    g, y = m.global_grid, {}
    height, width = (last + 1 for last in max(at))
    summary = []
    for a in range(g):
        for b in range(g):
            top, bottom = a * height // g, -(-(a + 1) * height // g)
            left, right = b * width // g, -(-(b + 1) * width // g)
            cell = [at[i, j] for i in range(top, bottom) for j in range(left, right)]
            summary.append(sum(cell) / len(cell))
    for (i, j), vector in at.items():
        same = [
            v for (p, q), v in at.items()
            if (p // m.window, q // m.window) == (i // m.window, j // m.window)
        ]  # fmt: skip
        y[i, j] = heads_over(m.attention, vector, same + summary)
    return y


@each
def local_global(m, x):
    return x + m.gamma * to_map(locally_globally(m, pixels(x)), x)


def of_tokens(function):
    """A function of {(i, j): vector} for the tokens of a grid, row by row."""

    def on(grid):
        places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]

        @each
        def naive(m, x):
            return torch.stack(list(function(m, dict(zip(places, x, strict=True))).values()))

        return naive

    return on


axial_tokens, local_global_tokens = of_tokens(axially), of_tokens(locally_globally)


def window(grid):
    """Windows by rolled place; a token that the roll brought round sees only such tokens."""

    @each
    def naive(m, x):
        places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
        side = m.window
        padded = [-(-length // side) * side for length in grid]
        shift = [m.shift if length > side else 0 for length in padded]

        def group(place):
            return [
                ((at - s) % length // side, at < s)
                for at, s, length in zip(place, shift, padded, strict=True)
            ]

        y = []
        for n, here in enumerate(places):
            seen = [k for k, there in enumerate(places) if group(there) == group(here)]
            index = [
                (here[0] - places[k][0] + side - 1) * (2 * side - 1)
                + (here[1] - places[k][1] + side - 1)
                for k in seen
            ]
            biases = m.position.table[index].T  # (h, K)
            y.append(heads_over(m.attention, x[n], [x[k] for k in seen], biases))
        return torch.stack(y)

    return naive


@each
def cross_attention2d(m, x, source):
    d = len(x) // m.heads
    there, y = pixels(source), {}
    for place, vector in pixels(x).items():
        result = []
        for head in range(m.heads):
            part = slice(head * d, (head + 1) * d)
            keys = [linear(m.key, v)[part] for v in there.values()]
            values = [linear(m.value, v)[part] for v in there.values()]
            query = linear(m.query, vector)[part]
            result.append(pool_over(query, keys, values, 1 / math.sqrt(d)))
        y[place] = linear(m.out, torch.cat(result))
    return x + m.gamma * to_map(y, x)


@each
def attention_pool(m, tokens):
    pooled = []
    for query in m.query:
        if m.score is None:
            scores = [(query * x).sum() / math.sqrt(len(x)) for x in tokens]
        else:
            scores = [
                linear(m.score, torch.tanh(linear(m.of_token, x) + linear(m.of_query, query)))[0]
                for x in tokens
            ]
        exps = [torch.exp(score) for score in scores]
        pooled.append(sum(e * x for e, x in zip(exps, tokens, strict=True)) / sum(exps))
    return pooled[0] if len(pooled) == 1 else torch.stack(pooled)


@each
def sequence_pool(m, tokens):
    exps = [torch.exp((m.query[0] * x).sum()) for x in tokens]
    return sum(e * x for e, x in zip(exps, tokens, strict=True)) / sum(exps)


@each
def attention_gate(m, x, gating):
    coarse = to_map({p: linear(m.phi, v) for p, v in pixels(gating).items()}, gating)
    size = [length // 2 for length in x.shape[1:]]
    theta = torch.zeros(len(coarse), *size, dtype=x.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            for a in (0, 1):
                for b in (0, 1):
                    theta[:, i, j] += m.theta.weight[:, :, a, b] @ x[:, 2 * i + a, 2 * j + b]
    joint = torch.relu(theta + F.interpolate(coarse[None], size, mode="bilinear")[0])
    alpha = to_map({p: torch.sigmoid(linear(m.psi, v)) for p, v in pixels(joint).items()}, joint)
    alpha = F.interpolate(alpha[None], x.shape[1:], mode="bilinear")[0, 0]
    conv, norm = m.out
    y = to_map({p: linear(conv, v * alpha[p]) for p, v in pixels(x).items()}, x)
    for c in rows(y):
        y[c] = (y[c] - norm.running_mean[c]) / torch.sqrt(norm.running_var[c] + norm.eps)
        y[c] = y[c] * norm.weight[c] + norm.bias[c]
    return y


def deformable(shapes):
    """Deformable attention over maps of these shapes."""

    @each
    def naive(m, query, reference, source):
        width = len(source[0]) // m.heads
        values = [linear(m.value, token) for token in source]
        maps, first = [], 0
        for height, wide in shapes:
            maps.append({(i, j): values[first + i * wide + j] for i in range(height)
                         for j in range(wide)})  # fmt: skip
            first += height * wide
        outputs = []
        for q, around in zip(query, reference, strict=True):
            offsets = linear(m.offsets, q).view(m.heads, len(shapes), m.points, 2)
            logits = linear(m.weights, q).view(m.heads, -1)
            of_heads = []
            for head in range(m.heads):
                exps = torch.exp(logits[head] - logits[head].max())
                weights = (exps / exps.sum()).view(len(shapes), m.points)
                total = torch.zeros(width, dtype=query.dtype)
                for level, (height, wide) in enumerate(shapes):
                    for point in range(m.points):
                        dx, dy = offsets[head, level, point]
                        if len(around[level]) == 2:
                            x, y = around[level][0] * wide + dx, around[level][1] * height + dy
                        else:
                            cx, cy, w, h = around[level]
                            x = (cx + dx * w / (2 * m.points)) * wide
                            y = (cy + dy * h / (2 * m.points)) * height
                        for (i, j), value in maps[level].items():
                            near = max(0, 1 - abs(x - 0.5 - j)) * max(0, 1 - abs(y - 0.5 - i))
                            mine = value[head * width : (head + 1) * width]
                            total = total + weights[level, point] * near * mine
                of_heads.append(total)
            outputs.append(linear(m.out, torch.cat(of_heads)))
        return torch.stack(outputs)

    return naive


def deformable_self(m, x):
    height, width = x.shape[2:]
    tokens = x.flatten(2).mT
    centers = [[(j + 0.5) / width, (i + 0.5) / height] for i in range(height) for j in range(width)]
    reference = torch.tensor(centers, dtype=x.dtype)[None, :, None].expand(len(x), -1, -1, -1)
    y = deformable([(height, width)])(m.attention, tokens, reference, tokens)
    return x + m.gamma * y.mT.unflatten(2, (height, width))
