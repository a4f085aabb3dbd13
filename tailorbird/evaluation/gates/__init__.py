"""Gates: what a winner must also satisfy."""
