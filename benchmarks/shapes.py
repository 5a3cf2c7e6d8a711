"""What is trained in the benchmarks: shapes of models, rows drawn like real ones, and the floor no implementation can go below."""

import statistics
import time

import numpy as np

SHAPES = {
    "135m": {  # SmolLM2-135M's shape
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "starter": {  # the built-in model's
        "vocab_size": 2112, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "tiny": {  # to see that a benchmark runs
        "vocab_size": 2112, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "8b": {  # Llama-3.1-8B's, for a GPU
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
}  # fmt: skip
PACKED = {
    "135m": 1024,
    "starter": 1024,
    "tiny": 256,
    "8b": 4096,
}  # tokens of a packed sequence; a step of the tuned contenders has two
Rows = list[tuple[list[int], int]]


def draw_rows(n: int, vocabulary: int) -> Rows:
    """Return (ids, prompt length) of n rows; prompts of 60 tokens and answers of 80 by the median, both log-normal."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(np.log(60), 0.5, n), 12, 400).astype(int)
    answers = np.clip(rng.lognormal(np.log(80), 0.8, n), 4, 600).astype(int)
    return [(rng.integers(3, vocabulary, p + a).tolist(), int(p)) for p, a in zip(prompts, answers, strict=True)]


def layer_products(shape: str) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of the seven weight matrices of a layer."""
    s = SHAPES[shape]
    h, kv = s["hidden_size"], s["hidden_size"] // s["num_attention_heads"] * s["num_key_value_heads"]
    return [(h, h), (h, kv), (h, kv), (h, h), *[(h, s["intermediate_size"])] * 2, (s["intermediate_size"], h)]


def needed_flops(shape: str, adapter: str, rows: Rows) -> float:
    """Operations per token a step cannot do without: full 6N + 6 s H V + 6 n d L, others 4N + 4 s H V + 6 n d L + 6 N_lora.

    N weights of the layers, s the scored share, H width, V vocabulary, n layers, d width of the queries, L the mean length of a
    row as its tokens see it (causal: a token sees half of it, forward 4 d and backward 8 d operations for each). Left out are DoRA's
    norms, W A^T once a step, under 1% of a step's operations, and what dequantising takes, which is no product.
    """
    s = SHAPES[shape]
    layers, products = s["num_hidden_layers"], layer_products(shape)
    weights = layers * sum(a * b for a, b in products)
    total = sum(len(ids) for ids, _ in rows)
    share = sum(len(ids) - p for ids, p in rows) / total
    length = sum(len(ids) ** 2 for ids, _ in rows) / total
    k, lora = (6, 0.0) if adapter == "full" else (4, 6.0 * 16 * layers * sum(a + b for a, b in products))
    h = s["hidden_size"]
    return k * weights + k * share * h * s["vocab_size"] + 6 * layers * h * length + lora


def gemm_rate(shape: str, threads: int) -> float:
    """Return the machine's bf16 rate on the model's own products (1,536 tokens), forward and backward, operations per second.

    Each product is timed alone, its operands at hand: the rate nothing that also has to do other work will reach.
    """
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operations = seconds = 0.0
    for inputs, outputs in sorted(set(layer_products(shape))):
        count = layer_products(shape).count((inputs, outputs))
        w = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
        for x, y in ((torch.randn(1536, inputs), w.t()), (torch.randn(1536, outputs), w)):
            x = x.to(device, torch.bfloat16)
            times = []
            for _ in range(9):
                began = time.perf_counter()
                for _ in range(10):
                    x @ y
                if x.is_cuda:
                    torch.cuda.synchronize()
                times.append((time.perf_counter() - began) / 10)
            seconds += count * statistics.median(times[2:])
            operations += count * 2.0 * 1536 * inputs * outputs
    return operations / seconds


def make_model(folder: str, shape: str) -> None:
    """Save a random model of the shape with the starter's tokenizer (its ids are all that is used of it)."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunesmith.model.loading import STARTER

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
