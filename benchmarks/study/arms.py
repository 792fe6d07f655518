"""What stands in for real images: the arms of the study, under the names that its tables have for them."""

NOISE = "noise"
SEED_IMAGES = "one real image a class"
PSAQ = "PSAQ-ViT"
GUIDE = "guide-FDDA"
TOKEN = "token-FDDA"
REAL = "real images"

ZERO_SHOT = "zero-shot L_BNS"
CENTERED = "L_BNS + L_C"
ALIGNED = "L_BNS + L_C + L_D (FDDA)"
UNTUNED = "no fine-tuning"
