"""A slow, literal, loop-written RETRO in float64: the paper's equations one token at a time, numpy alone.

It shares no code with retroflow.model: it takes the weights by name and follows Algorithm 1, equations 1 to 6 and
Listing 1 of Borgeaud et al. 2022. Every loop is a loop of the paper; nothing is batched, shifted or padded.
Indices count from 0: position t is in chunk t // m and reads the neighbours of chunk (t + 1) // m - 1.
"""

import math

import numpy as np


class Reference:
    """Computes the logits of one sequence from a state dict of numpy float64 arrays and a RetroConfig."""

    def __init__(self, weights, config):
        self.w, self.c = weights, config

    def logits(self, tokens, retrieved=None, mask=None):
        """tokens [n]; retrieved [l][k][r]; mask [l][k][r] -> logits [n, v]."""
        c, m = self.c, self.c.chunk_length
        h = self.smeared([self.w["embedding.weight"][t] for t in tokens], "smear")
        encoded = None
        for layer in range(1, c.num_layers + 1):
            name = f"blocks.{layer - 1}"
            h = self.self_attention(h, name, c.num_heads, causal=True)
            if retrieved is not None and c.cca_layers:
                if layer == min(c.cca_layers):
                    chunks = [h[u * m : (u + 1) * m] for u in range(len(tokens) // m)]
                    encoded = [
                        [self.encode(retrieved[u][j], mask[u][j], chunks[u]) for j in range(len(retrieved[u]))]
                        for u in range(len(chunks))
                    ]
                if layer in c.cca_layers:
                    h = self.chunked_cross_attention(h, encoded, mask, name)
            h = [x + self.feed_forward(x, name) for x in h]
        last = [rms_norm(x, self.w["norm.weight"]) for x in h]
        output = self.w["embedding.weight"] if c.tie_embeddings else self.w["output.weight"]
        return np.array([output @ x for x in last])

    def encode(self, tokens, mask, chunk):
        """ENCODER(RET(C_u)^j, H_u) for one neighbour j: list of r states."""
        c = self.c
        if c.share_encoder_embeddings:
            x = [self.w["embedding.weight"][t] for t in tokens]
            if c.width != c.encoder_width:
                x = [self.w["encoder_input.weight"] @ e for e in x]
        else:
            x = [self.w["encoder_embedding.weight"][t] for t in tokens]
        x = self.smeared(x, "encoder_smear")
        for layer in range(1, c.encoder_layers + 1):
            name = f"encoder.blocks.{layer - 1}"
            x = self.self_attention(x, name, c.encoder_heads, causal=False, mask=mask)
            if layer in c.encoder_cross_attention_layers:
                x = self.cross_attention(x, chunk, name)
            x = [e + self.feed_forward(e, name) for e in x]
        return [rms_norm(e, self.w["encoder.norm.weight"]) for e in x]

    def chunked_cross_attention(self, h, encoded, mask, name):
        """CCA of one layer: position t of attending chunk u is its i-th, i = t - ((u + 1) m - 1), from 0."""
        c, m, out = self.c, self.c.chunk_length, list(h)
        heads = c.cca_heads or c.num_heads
        for t in range(len(h)):
            u = (t + 1) // m - 1
            if u < 0:
                continue  # the first m - 1 positions have no retrieved chunk before them
            i = t - ((u + 1) * m - 1)
            query = heads_of(self.w[f"{name}.cca.query.weight"] @ rms_norm(h[t], self.w[f"{name}.cca_norm.weight"]), heads)
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
        return scale * rotary_product(query, key, i - i2 + self.c.chunk_length - 1, self.c.rotary_theta)

    def self_attention(self, h, name, heads, *, causal, mask=None):
        c = self.c
        normed = [rms_norm(x, self.w[f"{name}.attention_norm.weight"]) for x in h]
        projected = [np.split(self.w[f"{name}.attention.query_key_value.weight"] @ x, 3) for x in normed]
        out = []
        for t in range(len(h)):
            mixed = []
            for a in range(heads):
                seen = [s for s in range(len(h)) if (s <= t or not causal) and (mask is None or mask[s] or not any(mask))]
                query = heads_of(projected[t][0], heads)[a]
                logits = [
                    rotary_product(query, heads_of(projected[s][1], heads)[a], t - s, c.rotary_theta) / math.sqrt(len(query))
                    for s in seen
                ]
                mixed.append(sum(p * heads_of(projected[s][2], heads)[a] for p, s in zip(softmax(logits), seen, strict=True)))
            out.append(h[t] + self.w[f"{name}.attention.output.weight"] @ np.concatenate(mixed))
        return out

    def cross_attention(self, x, chunk, name):
        """CA of the encoder, d_enc(i', i) = i' - i."""
        heads = self.c.encoder_heads
        source = [np.split(self.w[f"{name}.cross_attention.key_value.weight"] @ rms_norm(h, self.w[f"{name}.source_norm.weight"]), 2) for h in chunk]
        out = []
        for i2, e in enumerate(x):
            query = heads_of(self.w[f"{name}.cross_attention.query.weight"] @ rms_norm(e, self.w[f"{name}.cross_attention_norm.weight"]), heads)
            mixed = []
            for a in range(heads):
                logits = [
                    rotary_product(query[a], heads_of(key, heads)[a], i2 - i, self.c.rotary_theta) / math.sqrt(len(query[a]))
                    for i, (key, _) in enumerate(source)
                ]
                mixed.append(sum(p * heads_of(value, heads)[a] for p, (_, value) in zip(softmax(logits), source, strict=True)))
            out.append(e + self.w[f"{name}.cross_attention.output.weight"] @ np.concatenate(mixed))
        return out

    def feed_forward(self, x, name):
        hidden = self.w[f"{name}.feed_forward.expand.weight"] @ rms_norm(x, self.w[f"{name}.feed_forward_norm.weight"])
        gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return self.w[f"{name}.feed_forward.contract.weight"] @ gelu

    def smeared(self, x, name):
        if not self.c.smear:
            return x
        weight = self.w[f"{name}.previous.weight"]
        return [e if t == 0 else e + weight @ x[t - 1] for t, e in enumerate(x)]


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
