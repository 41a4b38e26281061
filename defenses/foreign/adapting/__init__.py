"""How models made elsewhere are brought to give logits of images in [0, 1]."""
