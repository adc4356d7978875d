"""Hugging Face Text Generation Inference: its metrics, and what it says of itself at `/info`."""

from __future__ import annotations

from typing import Literal

from exporter.sources import engine


class Server(engine.Server):
    """A server of Text Generation Inference. Experimental: made from its documentation."""

    source: Literal["tgi"] = "tgi"


class Tgi(engine.Engine):
    """Reads one server of Text Generation Inference."""

    kind = "tgi"
    Config = Server
    ports = (8080, 3000)
    speaks = ("tgi_",)
    models = "/info"
    versions = "/info"

    async def _json(self, endpoint: str) -> object:
        """What `/info` says, in the form of a list of models, of which there is one."""
        said = await super()._json(endpoint)
        if not isinstance(said, dict):
            return None
        entry = {"id": said.get("model_id"), "max_model_len": said.get("max_total_tokens")}
        return {"version": said.get("version"), "data": [entry]}


SOURCE = Tgi
