"""Writes models that talk nonsense: python make_models.py FOLDER NAME... (random weights, a llama of a few layers).

A name that begins with `slow` stands for a model of 76 million weights, which takes a moment to load and to answer; any
other for one of a hundred thousand.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

SIZES = {"slow": (768, 8, 12, 12, 3072), "": (64, 2, 4, 2, 128)}


def pieces() -> tuple[list[bytes], list[int]]:
    """A vocabulary of all bytes and letters, its length a multiple of 32, and the kind of each token."""
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    words = ["\u2581", *letters, *(f"\u2581{letter}" for letter in letters), "th", "he", "in", "\u2581the", "\u2581and"]
    tokens += [word.encode() for word in words]
    types += [kinds.NORMAL] * len(words)
    while len(tokens) % 32:
        tokens.append(f"<pad{len(tokens)}>".encode())
        types.append(kinds.UNUSED)
    return tokens, [int(kind) for kind in types]


def write(path: Path) -> None:
    width, layers, heads, kv_heads, inner = SIZES["slow" if path.stem.startswith("slow") else ""]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(path.stem)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens, types = pieces()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(place) for place in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_vocab_size(len(tokens))

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * 0.08).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    tensor("token_embd", len(tokens), width)
    narrow = kv_heads * width // heads
    for layer in range(layers):
        block = f"blk.{layer}."
        ones(f"{block}attn_norm")
        tensor(f"{block}attn_q", width, width)
        tensor(f"{block}attn_k", narrow, width)
        tensor(f"{block}attn_v", narrow, width)
        tensor(f"{block}attn_output", width, width)
        ones(f"{block}ffn_norm")
        tensor(f"{block}ffn_gate", inner, width)
        tensor(f"{block}ffn_up", inner, width)
        tensor(f"{block}ffn_down", width, inner)
    ones("output_norm")
    tensor("output", len(tokens), width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name in sys.argv[2:]:
    write(folder / f"{name}.gguf")
