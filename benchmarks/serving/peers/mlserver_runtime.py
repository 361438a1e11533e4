"""MLServer's custom runtime for MiniLM, after the "serving a custom model" example of its documentation."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from sentence_encoder import from_environment


class MiniLM(MLModel):
    """Texts in, vectors out; pads to the longest text of the adaptive batch."""

    bucketed = False

    async def load(self) -> bool:
        """Open the tokenizer and the session in MLServer's worker process."""
        self.encoder = from_environment(bucketed=self.bucketed)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Encode the merged batch."""
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = self.encoder.encode(texts)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="embedding", payload=vectors)]
        )


class BucketedMiniLM(MiniLM):
    """The same with bucketing added by a careful author."""

    bucketed = True
