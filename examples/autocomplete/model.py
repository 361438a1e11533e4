"""A customer's autocomplete as a model of Triton's Python backend; `build.py` puts the counts beside this file.

Input `text` (BYTES [n, 1]); outputs `completion` (BYTES [n, 5], empty where there is none) and `score` (FP32 [n, 5]).
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from next_words import NextWords

SUGGESTIONS = 5
MAX_BATCH = 64
LONGEST_TEXT = 1000  # characters that are looked at, from the end


class TritonPythonModel:
    """One instance."""

    @staticmethod
    def auto_complete_config(config):
        """Say what goes in and out, so that no config.pbtxt is needed."""
        config.set_max_batch_size(MAX_BATCH)
        config.set_dynamic_batching()
        config.add_input({"name": "text", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "completion", "data_type": "TYPE_STRING", "dims": [SUGGESTIONS]})
        config.add_output({"name": "score", "data_type": "TYPE_FP32", "dims": [SUGGESTIONS]})
        return config

    def initialize(self, args):
        """Map the counts."""
        self.next_words = NextWords.load(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests):
        """Complete the texts of each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()
        try:
            texts = [item.decode("utf-8")[-LONGEST_TEXT:] for item in given]
        except UnicodeDecodeError as error:
            said = pb_utils.TritonError(f"'text' is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=said)
        completions = np.full((len(texts), SUGGESTIONS), b"", dtype=np.object_)
        scores = np.zeros((len(texts), SUGGESTIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            for column, (completion, score) in enumerate(self.next_words.suggest(text, SUGGESTIONS)):
                completions[row, column] = completion.encode()
                scores[row, column] = score
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("completion", completions), pb_utils.Tensor("score", scores)]
        )
