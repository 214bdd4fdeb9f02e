"""Next frame: a ViT over the patches of all frames, causal in time, predicts every frame from those before it.

A token sees its whole frame and all earlier ones, never a later one. It predicts how its patch will change, so that an
untrained model copies the last frame: the baseline that stands beside every result. The loss is the squared error of
pixels in [0, 1], summed; counted once per predicted pixel and channel. `loss` is teacher-forced (every true frame up
to the last is seen); `free_running_mse` feeds the model its own frames after the first half. Srivastava et al. 2015
(arXiv 1502.04681) set the task.

The last frame of a row is only ever predicted. So there is one time less than there are frames, and features read all
frames but the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_models.config import Backbone
from ssl_models.data.encoding import Encoding
from ssl_models.models.transformer import Stack
from ssl_models.models.vision import patch_encoder, to_unit, unpatchify
from ssl_models.objectives import Batch, Examples, Objective, Options, Outcome, Rows
from ssl_models.objectives.shared import pictures

_SPREAD = 0.02


class NextFrame(Objective):
    """A ViT with learned times added to the positions of its patches."""

    seen: Tensor

    def __init__(self, backbone: Backbone, options: Options, encoding: Encoding) -> None:
        super().__init__(backbone, options, encoding)
        if encoding.modality != "video" or encoding.frames < 2:
            raise ValueError(f"objective: the next frame needs video of at least 2 frames, not {encoding.modality}")
        self.encoder = encoder = patch_encoder(backbone, encoding)
        if encoder.architecture.positions == "relative":
            raise ValueError("positions: this objective needs sincos or learned positions")
        encoder.register_parameter("cls", None)  # frames have no [CLS]
        self.frames, self.height, self.columns = encoding.frames, encoding.height, encoding.width
        self.time = nn.Parameter(torch.randn(self.frames - 1, 1, encoder.width) * _SPREAD)
        self.head = nn.Linear(encoder.width, encoder.values)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        time = torch.arange(self.frames - 1).repeat_interleave(encoder.patches)
        later = torch.zeros(len(time), len(time)).masked_fill(time[:, None] < time[None, :], -torch.inf)
        self.register_buffer("seen", later[None, None], persistent=False)

    def encode(self, video: Tensor) -> Tensor:
        """`video` `[batch, frames, channels, height, width]`, of fewer frames than a row has, to `[batch, frames,
        patches, width]`."""
        batch, frames = video.shape[:2]
        patches = self.encoder.place(self.encoder.project(video.flatten(0, 1)))
        x = patches.view(batch, frames, self.encoder.patches, -1) + self.time[:frames]
        x = self.encoder.norm(x.flatten(1, 2))
        seen = self.seen[..., : x.shape[1], : x.shape[1]]
        stack: Stack = self.encoder.stack
        out: Tensor = stack(x, biases=[seen] * len(stack.blocks))
        return out.view(batch, frames, self.encoder.patches, -1)

    def predict(self, video: Tensor) -> Tensor:
        """The frame after each frame of `video` `[batch, frames, channels, height, width]`: float of the same shape."""
        change = unpatchify(self.head(self.encode(video)).flatten(0, 1), self.encoder.patch, self.height, self.columns)
        return to_unit(video) + change.float().view(video.shape)

    def run_on(self, video: Tensor, given: int) -> Tensor:
        """The frames from `given` on, each from the first `given` true frames and the model's own after them, clipped
        to [0, 1]."""
        frames = to_unit(video[:, :given])
        while frames.shape[1] < video.shape[1]:
            following = self.predict(frames)[:, -1:].clamp(0, 1)
            frames = torch.cat([frames, following], dim=1)
        return frames[:, given:]

    def prepare(self, rows: Rows, keys: Tensor) -> Batch:
        """`video` uint8, as it is."""
        return {"video": rows["pixels"]}

    def count(self, batch: Batch) -> Tensor:
        """Values of all frames but the first."""
        video = batch["video"]
        return torch.tensor(float(video[:, 1:].numel()), device=video.device)

    def loss(self, batch: Batch) -> Outcome:
        """Teacher-forced loss; the error of copying the last frame; in evaluation also the free-running error."""
        video = to_unit(batch["video"])
        count = self.count(batch)
        loss = ((self.predict(video[:, :-1]) - video[:, 1:]) ** 2).sum()
        sums = {"copy_last_frame_mse": (((video[:, :-1] - video[:, 1:]) ** 2).sum(), count)}
        if not self.training:
            sums |= {"teacher_forced_mse": (loss.detach(), count), **self._free_running(video)}
        return Outcome(loss, sums)

    @torch.no_grad()
    def _free_running(self, video: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The errors after the first half of `video`, seen from there: of the model's frames, and of the last one
        seen."""
        given = self.frames // 2
        true, last = video[:, given:], video[:, given - 1 : given]
        values = torch.tensor(float(true.numel()), device=video.device)
        guesses = {"free_running_mse": self.run_on(video, given), "free_running_copy_mse": last}
        return {name: (((guess - true) ** 2).sum(), values) for name, guess in guesses.items()}

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """`mean` over all frames but the first, and `last`, the last one, which has seen these: means over patches."""
        encoded = self.encode(rows["pixels"][:, 1:]).float()
        return {"mean": encoded.mean(dim=(1, 2)), "last": encoded[:, -1].mean(dim=1)}

    @torch.no_grad()
    def examples(self, rows: Rows, keys: Tensor) -> Examples:
        """For a few videos three rows each: the true frames, those predicted from true ones, those predicted
        free-running."""
        video = to_unit(rows["pixels"][:4])
        given = self.frames // 2
        forced = torch.cat([video[:, :1], self.predict(video[:, :-1])], dim=1)
        free = torch.cat([video[:, :given], self.run_on(video, given)], dim=1)
        shown = [kind[i] for i in range(len(video)) for kind in (video, forced, free)]
        return Examples(pictures={"true_forced_free": pictures.tile(shown)})


OBJECTIVE = NextFrame
