"""A measure: a function of (network, images) and its record. A configuration names it examples/own_measure.py:MEASURE."""

from tenas import Measure


def effective_rank(network, images):
    """How many directions the features before the classifier spread over: exp of the entropy of their singular values.

    From 1, all images look alike, to the number of features (or of images, if that is smaller). Source: Roy and Vetterli,
    "The effective rank", EUSIPCO 2007, definition 1; here of features that are centred over the batch.
    """
    # In the function: jobs that only rank or draw read the record, and start without torch.
    import torch
    from torch import nn

    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen = []
    # What a measure does to the network it must undo: the trials of a round share it.
    hook = classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    features = seen[0].double()
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    # Of features that are all alike nothing is left, which is a rank of 1 as well.
    shares = values / values.sum().clamp_min(1e-300)
    return torch.special.entr(shares).sum().exp()


MEASURE = Measure("effective_rank", effective_rank, source="Roy and Vetterli, EUSIPCO 2007")
