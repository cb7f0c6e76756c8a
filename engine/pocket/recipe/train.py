"""Trains the weights on generated text: tok.model -> model.pt. OMP_NUM_THREADS=1 is essential: more threads are slower."""
import math, os, random, re, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
import data, sentencepiece as spm

torch.manual_seed(1)
np.random.seed(1)
torch.set_num_threads(1)
V, D, L, H, FF, T = 1536, 128, 4, 4, 384, 192
STEPS, B, LR = int(os.environ.get('STEPS', 3000)), 24, 3e-3
sp = spm.SentencePieceProcessor(model_file='tok.model')
ctl = {p: sp.piece_to_id(p) for p in [data.BOS, data.EOT] + data.CONTROL}
pat = re.compile('(' + '|'.join(re.escape(c) for c in ctl) + ')')


def enc(s):
    """Token ids, and how much each counts: answers fully, the rest a little."""
    out, w, bot = [], [], False
    for p in pat.split(s):
        if p in ctl:
            out.append(ctl[p])
            w.append(1.0 if bot and p == data.EOT else 0.05)
            bot = p == data.BOT
        elif p:
            ids = sp.encode(p)
            out += ids
            w += [1.0 if bot else 0.05] * len(ids)
    return out, w


g = data.glosses()
t0 = time.time()
random.seed(7)
stream, wts = [], []
while len(stream) < B * T * STEPS // 2 + T:
    a, b = enc(data.chat(g))
    stream += a
    wts += b
stream, wts = np.array(stream, dtype=np.int64), np.array(wts, dtype=np.float32)
print('tokens', len(stream), 'in', round(time.time() - t0, 1), 's', flush=True)


class RMS(nn.Module):
    def __init__(s):
        super().__init__()
        s.weight = nn.Parameter(torch.ones(D))

    def forward(s, x): return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * s.weight


hd = D // H
ang = torch.outer(torch.arange(T).float(), 1.0 / (10000 ** (torch.arange(0, hd, 2).float() / hd)))
COS, SIN = ang.cos()[None, :, None, :], ang.sin()[None, :, None, :]
MASK = torch.full((T, T), float('-inf')).triu(1)


def rope(x):  # interleaved pairs, as llama.cpp's "llama" architecture
    n, a, b = x.shape[1], x[..., 0::2], x[..., 1::2]
    c, s = COS[:, :n], SIN[:, :n]
    return torch.stack([a*c - b*s, a*s + b*c], -1).flatten(-2)


class Block(nn.Module):
    def __init__(s):
        super().__init__()
        s.n1, s.n2 = RMS(), RMS()
        s.qkv, s.o = nn.Linear(D, 3*D, bias=False), nn.Linear(D, D, bias=False)
        s.gu, s.down = nn.Linear(D, 2*FF, bias=False), nn.Linear(FF, D, bias=False)

    def forward(s, x):
        b, n, _ = x.shape
        q, k, v = s.qkv(s.n1(x)).view(b, n, 3, H, hd).unbind(2)
        q, k = rope(q).transpose(1, 2), rope(k).transpose(1, 2)
        a = (q @ k.transpose(-1, -2)) / math.sqrt(hd) + MASK[:n, :n]
        x = x + s.o((a.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(b, n, D))
        h, u = s.gu(s.n2(x)).chunk(2, -1)
        return x + s.down(F.silu(h) * u)


class Model(nn.Module):
    def __init__(s):
        super().__init__()
        s.emb, s.bl, s.n = nn.Embedding(V, D), nn.ModuleList(Block() for _ in range(L)), RMS()
        for p in s.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, 0, 0.02)
        for b in s.bl:
            for w in (b.o, b.down):
                nn.init.normal_(w.weight, 0, 0.02 / math.sqrt(2*L))

    def forward(s, i):
        x = s.emb(i)
        for b in s.bl:
            x = b(x)
        return s.n(x) @ s.emb.weight.t()


m = Model()
print('weights', sum(p.numel() for p in m.parameters()), flush=True)
opt = torch.optim.AdamW([{'params': [p for p in m.parameters() if p.dim() > 1], 'weight_decay': 0.05},
                         {'params': [p for p in m.parameters() if p.dim() == 1], 'weight_decay': 0.}], lr=LR, betas=(0.9, 0.98))
t0, cpu0 = time.time(), time.process_time()
for st in range(STEPS):
    for gr in opt.param_groups:
        gr['lr'] = LR * min(1, (st+1)/40) * (1 - st/STEPS)
    ix = np.random.randint(0, len(stream)-T-1, B)
    x = torch.from_numpy(np.stack([stream[i:i+T] for i in ix]))
    y = torch.from_numpy(np.stack([stream[i+1:i+T+1] for i in ix]))
    w = torch.from_numpy(np.stack([wts[i+1:i+T+1] for i in ix])).view(-1)
    loss = (F.cross_entropy(m(x).view(-1, V), y.view(-1), reduction='none') * w).sum() / w.sum()
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    opt.step()
    if st % 25 == 0 or st == STEPS-1:
        print(st, round(loss.item(), 3), round(time.time()-t0), 's wall', round(time.process_time()-cpu0), 's cpu', flush=True)
    if st % 100 == 99:
        torch.save(m.state_dict(), 'model.pt')
torch.save(m.state_dict(), 'model.pt')
