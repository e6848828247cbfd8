"""A slow, literal, loop-written RETRO in float64: the paper's equations one token at a time, numpy alone.

It shares no code with retroflow.model: it takes the weights by name and follows Algorithm 1, equations 1 to 6,
Listing 1 and appendix B of Borgeaud et al. 2022. Every loop is a loop of the paper; nothing is batched or shifted.
Indices count from 0. Window w is the m positions before T(w) = m + w s, with the paper's step s = m a chunk; position t
reads the neighbours of the newest window with T(w) <= t + 1. Padding is no text: such positions do not exist here.
"""

import math

import numpy as np


class Reference:
    """Computes the logits of one sequence from a state dict of numpy float64 arrays and a RetroConfig."""

    def __init__(self, weights, config):
        self.w, self.c = weights, config

    def logits(self, tokens, retrieved=None, mask=None, *, padding=0, step=None):
        """tokens [n]; retrieved [W][k][r]; mask [W][k][r] -> logits [n, v], those of padding not a number."""
        c, m = self.c, self.c.chunk_length
        ends = list(range(m, len(tokens) + 1, step or m))  # T(w)
        h = self.smeared({t: self.w["embedding.weight"][tokens[t]] for t in range(padding, len(tokens))}, "smear")
        encoded, mask = None, self.part(mask)
        for layer in range(1, c.num_layers + 1):
            name = f"blocks.{layer - 1}"
            h = self.self_attention(h, name, c.num_heads, causal=True)
            if retrieved is not None and c.cca_layers:
                if layer == min(c.cca_layers):
                    encoded = []
                    for w, end in enumerate(ends):
                        window = {i: h[end - m + i] for i in range(m) if end - m + i >= padding}
                        found = zip(self.part(retrieved)[w], mask[w], strict=True) if window else []
                        encoded.append([self.encode(text, seen, window) for text, seen in found])
                if layer in c.cca_layers:
                    h = self.chunked_cross_attention(h, ends, encoded, mask, name)
            h = {t: x + self.feed_forward(x, name) for t, x in h.items()}
        output = self.w["embedding.weight"] if c.tie_embeddings else self.w["output.weight"]
        nothing = np.full(c.vocabulary_size, np.nan)
        return np.array(
            [output @ rms_norm(h[t], self.w["norm.weight"]) if t in h else nothing for t in range(len(tokens))]
        )

    def part(self, retrieved):
        """What is read of every neighbour: the neighbour [0, m), its continuation [m, 2m), or both."""
        m, which = self.c.chunk_length, self.c.retrieved_part
        first, last = (m if which == "continuation" else 0), (m if which == "neighbour" else 2 * m)
        return retrieved and [[text[first:last] for text in neighbours] for neighbours in retrieved]

    def encode(self, tokens, mask, window):
        """ENCODER(RET(C_u)^j, H_u) for one neighbour j: list of r states."""
        c = self.c
        if c.share_encoder_embeddings:
            x = [self.w["embedding.weight"][t] for t in tokens]
            if c.width != c.encoder_width:
                x = [self.w["encoder.input.weight"] @ e for e in x]
        else:
            x = [self.w["encoder.embedding.weight"][t] for t in tokens]
        # A token that was not retrieved is before none; what becomes of it is read by none.
        x = self.smeared({i: e if mask[i] else 0 * e for i, e in enumerate(x)}, "encoder.smear")
        for layer in range(1, c.encoder_layers + 1):
            name = f"encoder.blocks.{layer - 1}"
            x = self.self_attention(x, name, c.encoder_heads, causal=False, mask=mask)
            if layer in c.encoder_cross_attention_layers:
                x = self.cross_attention(x, window, name)
            x = {i: e + self.feed_forward(e, name) for i, e in x.items()}
        return [rms_norm(x[i], self.w["encoder.norm.weight"]) for i in range(len(tokens))]

    def chunked_cross_attention(self, h, ends, encoded, mask, name):
        """CCA of one layer: of the positions that read window w, t is the i-th, i = t - (T(w) - 1), from 0."""
        c, out = self.c, dict(h)
        heads = c.cca_heads or c.num_heads
        for t in h:
            closed = [w for w, end in enumerate(ends) if end <= t + 1]
            if not closed:
                continue  # nothing has been retrieved yet
            u = closed[-1]
            i = t - (ends[u] - 1)
            query = heads_of(
                self.w[f"{name}.cca.query.weight"] @ rms_norm(h[t], self.w[f"{name}.cca_norm.weight"]), heads
            )
            entries = []  # (neighbour's token position, key, value) over all neighbours: one softmax
            for j, states in enumerate(encoded[u]):
                for i2 in range(len(states)):
                    value_at = i2 + 1 if c.next_token_values else i2
                    if value_at >= len(states) or not (mask[u][j][i2] and mask[u][j][value_at]):
                        continue
                    key = heads_of(self.w[f"{name}.cca.key.weight"] @ states[i2], heads)
                    value = heads_of(self.w[f"{name}.cca.value.weight"] @ states[value_at], heads)
                    entries.append((i2, key, value))
            if not entries:
                continue
            mixed = []
            for a in range(heads):
                logits = [self.cca_logit(query[a], key[a], i, i2, name, a) for i2, key, _ in entries]
                mixed.append(sum(p * value[a] for p, (_, _, value) in zip(softmax(logits), entries, strict=True)))
            out[t] = h[t] + self.w[f"{name}.cca.output.weight"] @ np.concatenate(mixed)
        return out

    def cca_logit(self, query, key, i, i2, name, head):
        """Content and distance d(i, i') = i - i' + m - 1 (i, i' counted alike)."""
        scale = 1 / math.sqrt(len(query))
        if self.c.cca_scale:
            query, key = query / np.linalg.norm(query), key / np.linalg.norm(key)
            scale = self.w[f"{name}.cca.scale"][head].item()
        if not self.c.cca_positions:
            return scale * float(query @ key)
        return scale * self.product(query, key, i - i2 + self.c.chunk_length - 1, f"{name}.cca", head)

    def self_attention(self, h, name, heads, *, causal, mask=None):
        normed = {t: rms_norm(x, self.w[f"{name}.attention_norm.weight"]) for t, x in h.items()}
        projected = {t: np.split(self.w[f"{name}.attention.query_key_value.weight"] @ x, 3) for t, x in normed.items()}
        out = {}
        for t in h:
            mixed = []
            for a in range(heads):
                seen = [s for s in h if (s <= t or not causal) and (mask is None or mask[s] or not any(mask))]
                query = heads_of(projected[t][0], heads)[a]
                logits = [
                    self.product(query, heads_of(projected[s][1], heads)[a], t - s, f"{name}.attention", a)
                    / math.sqrt(len(query))
                    for s in seen
                ]
                mixed.append(
                    sum(p * heads_of(projected[s][2], heads)[a] for p, s in zip(softmax(logits), seen, strict=True))
                )
            out[t] = h[t] + self.w[f"{name}.attention.output.weight"] @ np.concatenate(mixed)
        return out

    def cross_attention(self, x, window, name):
        """CA of the encoder, d_enc(i', i) = i' - i."""
        heads, of = self.c.encoder_heads, f"{name}.cross_attention"
        source = {
            i: np.split(self.w[f"{of}.key_value.weight"] @ rms_norm(h, self.w[f"{name}.source_norm.weight"]), 2)
            for i, h in window.items()
        }
        out = {}
        for i2, e in x.items():
            query = heads_of(
                self.w[f"{of}.query.weight"] @ rms_norm(e, self.w[f"{name}.cross_attention_norm.weight"]), heads
            )
            mixed = []
            for a in range(heads):
                logits = [
                    self.product(query[a], heads_of(key, heads)[a], i2 - i, of, a) / math.sqrt(len(query[a]))
                    for i, (key, _) in source.items()
                ]
                mixed.append(
                    sum(
                        p * heads_of(value, heads)[a]
                        for p, (_, value) in zip(softmax(logits), source.values(), strict=True)
                    )
                )
            out[i2] = e + self.w[f"{of}.output.weight"] @ np.concatenate(mixed)
        return out

    def product(self, query, key, distance, name, head):
        """A head's logit before scaling: rotary, or content and distance, q . (k + R s(d)) (appendix B)."""
        if self.c.positions == "rotary":
            return rotary_product(query, key, distance, self.c.rotary_theta)
        matrix = self.w[f"{name}.positions.distance.weight"]
        of_head = matrix[head * len(query) : (head + 1) * len(query)]
        return float(query @ (key + of_head @ sinusoids(distance, matrix.shape[1], self.c.rotary_theta)))

    def feed_forward(self, x, name):
        hidden = self.w[f"{name}.feed_forward.expand.weight"] @ rms_norm(x, self.w[f"{name}.feed_forward_norm.weight"])
        gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return self.w[f"{name}.feed_forward.contract.weight"] @ gelu

    def smeared(self, x, name):
        if not self.c.smear:
            return x
        weight = self.w[f"{name}.previous.weight"]
        return {t: e + weight @ x[t - 1] if t - 1 in x else e for t, e in x.items()}


def rms_norm(x, weight):
    return x / math.sqrt(float(np.mean(x**2)) + 1e-6) * weight


def softmax(logits):
    shifted = np.exp(np.array(logits) - max(logits))
    return shifted / shifted.sum()


def heads_of(x, heads):
    return np.split(x, heads)


def rotary_product(query, key, distance, theta):
    """The inner product of two vectors turned by their positions, as a function of the distance query - key alone."""
    half, total = len(query) // 2, 0.0
    for pair in range(half):
        angle = distance * theta ** (-2 * pair / len(query))
        q = complex(query[pair], query[pair + half])
        k = complex(key[pair], key[pair + half])
        total += (q * complex(math.cos(angle), math.sin(angle)) * k.conjugate()).real
    return total


def sinusoids(distance, width, theta):
    """Sines, then cosines, of a distance at half as many wavelengths as features, from 2 pi to 2 pi theta."""
    half = (width + 1) // 2
    angles = [distance * theta ** (-i / half) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])[:width]
