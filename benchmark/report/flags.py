"""What each flag under a table means, and what to do about it."""

FLAGS = {
    "train-mode": "was handed over in training mode; it was evaluated in eval mode",
    "probabilities": "returns probabilities, not logits: gradients may vanish; remove the softmax",
    "non-deterministic": "gives other logits for the same input; verdicts hold for one draw only",
    "float32-only": "does not run in float64, so verdicts were checked in float32 alone",
    "attack-error": "an attack failed; best-attack is over the others, if any: an upper bound",
    "zero-gradient": "gives zero or tiny gradients on most clean images, so gradient attacks see "
    "nothing: its accuracies are not to be trusted; attack a differentiable stand-in",
    "no-ascent": "its loss hardly rises along its own gradient, which points nowhere: accuracies "
    "are not to be trusted; add strong, square or boundary, or attack a smoother stand-in",
    "large-eps": "withstands PGD within the whole box, where any image can become any other: "
    "gradients are hidden, not gone; add strong, square or boundary, or transfer from a stand-in",
    "gradient-free": "an attack without gradients broke clearly more than the best with them: "
    "gradients mislead, or those attacks are too weak; add strong, and more steps and restarts",
    "transfer": "points crafted on another model broke clearly more than the best attack on this "
    "one: its gradients mislead, or those attacks are too weak; add strong, attack a "
    "differentiable stand-in, and start from its points (seeded:cw)",
    "not-converged": "attacks were still breaking samples when they ended: the accuracies would go "
    "on falling; give more steps or restarts",
    "contradiction": "an attack found misclassified points within certified radii: its certificate "
    "or the model is wrong; trust neither until that is mended",
    "chance": "is right on clean images no more often than a guess: check labels, normalisation",
    "whole-range": "eps lets a pixel take any value: it is for images in [0, 1], such as 8/255",
    "outside-ball": "an attack returned points outside the ball or box, or NaN; they were "
    "projected before they were judged",
    "rounding": "misclassifies some points in one precision only, which do not count as broken; "
    "try precision float64",
    "nan": "gives NaN logits at some points; these count as misclassified",
}
