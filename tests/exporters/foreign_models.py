"""Three models of other people's making, small: a residual CNN, a plain ViT with packed qkv, Gemms of both kinds."""

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 16
IMAGES = (4, 3, SIDE, SIDE)


class ResidualBlock(nn.Module):
    """ResNet's basic block: two convolutions with BatchNorm, and a projected shortcut where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2 = ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2)
        self.fc = nn.Linear(32, 16)

    def forward(self, images):
        x = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Attention(nn.Module):
    """As timm has it: packed qkv, and torch's own attention with its scale on both factors."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, count, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, dim))


class VitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, dim=64, heads=2, depth=2):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, dim) * 0.2)
        self.blocks = nn.Sequential(*(VitBlock(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 16)

    def forward(self, images):
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class HalfInside(nn.Module):
    """A module in float16 between float32 ends."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside.half()

    def forward(self, images):
        return self.inside(images.half()).float()


def settled(model, scale=2.0):
    """The model in evaluation mode, its BatchNorms with statistics and factors that a training could have left."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, scale)
            module.weight.data.uniform_(0.5, scale)
            module.bias.data.normal_(0, 0.3)
    return model.eval()


GEMMS = """gemms (float[batch, 3, 16, 16] image) => (float[batch, 16] logits) {
    [flatten] flat = Flatten (image)
    [transposed] first = Gemm <transB = 1> (flat, w1, b1)
    [act] active = Relu (first)
    [plain] second = Gemm (active, w2, b2)
    [act2] active2 = Relu (second)
    [scaled] logits = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (active2, w3, b3)
}"""
GEMM_WEIGHTS = {"w1": (32, 768), "b1": (32,), "w2": (32, 64), "b2": (64,), "w3": (16, 64), "b3": (16,)}
