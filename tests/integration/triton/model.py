"""A model of Triton's Python backend that runs ONNX Runtime. Triton imports this, nothing of ours does.

It fails to load with batches larger than `most` of its parameters, as an engine that was built for fewer
does, and it fails every request while a file `broken` lies beside it.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        most = int(config["parameters"]["most"]["string_value"])
        if config["max_batch_size"] > most:
            raise pb_utils.TritonModelException(f"this engine was built for batches of {most}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(HERE / "model.onnx", options)
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests):
        if (HERE / "broken").exists():
            raise RuntimeError("the model is broken")
        feeds = [
            [pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs] for r in requests
        ]
        joined = {
            name: np.concatenate(parts)
            for name, parts in zip(self.inputs, zip(*feeds, strict=True), strict=True)
        }
        answer = self.session.run([self.output], joined)[0]
        responses, start = [], 0
        for parts in feeds:
            end = start + len(parts[0])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, answer[start:end])]))
            start = end
        return responses
