"""Triton with MiniLM bound through pytriton, after pytriton's Hugging Face examples.

python pytriton_server.py HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from sentence_encoder import SentenceEncoder, from_environment

MAX_BATCH = 32
QUEUE_DELAY_US = 2000
WIDTH = 384


def inference_of(encoder: SentenceEncoder) -> Callable[..., dict[str, np.ndarray]]:
    """The callable pytriton binds: BYTES [n, 1] to FP32 [n, 384]."""

    @batch
    def infer(text: np.ndarray) -> dict[str, np.ndarray]:
        return {"embedding": encoder.encode([item.decode() for item in text[:, 0]])}

    return infer


def bind(triton: Triton, name: str, encoder: SentenceEncoder) -> None:
    """Offer `encoder` as model `name` with dynamic batching."""
    triton.bind(
        model_name=name,
        infer_func=inference_of(encoder),
        inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
        outputs=[Tensor(name="embedding", dtype=np.float32, shape=(WIDTH,))],
        config=ModelConfig(
            max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=QUEUE_DELAY_US)
        ),
    )


def main() -> None:
    """Serve until told to stop."""
    http_port, grpc_port = int(sys.argv[1]), int(sys.argv[2])
    config = TritonConfig(http_port=http_port, grpc_port=grpc_port, allow_metrics=False, http_address="127.0.0.1")
    with Triton(config=config) as triton:
        bind(triton, "minilm", from_environment(bucketed=False))
        bind(triton, "minilm-bucketed", from_environment(bucketed=True))
        triton.serve()


if __name__ == "__main__":
    main()
