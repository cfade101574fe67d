"""Models at work: strict loading, greedy replies, log-likelihoods, inputs of single layers."""

from __future__ import annotations

from suture.inference.capture import BlockStream
from suture.inference.generation import Reply, generate
from suture.inference.loading import Device, LoadedModel, Precision, load
from suture.inference.scoring import option_logprobs, reply_logprob, response_kl

__all__ = [
    "BlockStream",
    "Device",
    "LoadedModel",
    "Precision",
    "Reply",
    "generate",
    "load",
    "option_logprobs",
    "reply_logprob",
    "response_kl",
]
