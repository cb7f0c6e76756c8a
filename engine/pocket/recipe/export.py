"""Writes model.pt and tok.model as GGUF (architecture llama). usage: export.py OUT [f32|f16|q8_0]"""
import struct, sys
import numpy as np, torch, sentencepiece as spm

out, kind = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else 'q8_0'
V, D, L, H, FF = 1536, 128, 4, 4, 384
sp = spm.SentencePieceProcessor(model_file='tok.model')
sd = {k: v.float().numpy() for k, v in torch.load('model.pt').items()}
TEMPLATE = (
    "{{ '<s>' }}{% if tools %}{{ '<|tools|>' }}{% for t in tools %}{% if not loop.first %}{{ ', ' }}{% endif %}{{ t.function.name }}{% endfor %}{{ '</s>' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|tool|>' + m.content + '</s>' }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{% for c in m.tool_calls %}{{ '<|assistant|><tool_call>{\"name\": \"' + c.function.name + '\", \"arguments\": ' }}"
    "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}{{ '}</s>' }}{% endfor %}"
    "{% else %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")

kv = []


def text(x):
    b = x.encode()
    return struct.pack('<Q', len(b)) + b


def put(k, t, v): kv.append(text(k) + struct.pack('<I', t) + v)
def u32(k, v): put(k, 4, struct.pack('<I', v))
def f32(k, v): put(k, 6, struct.pack('<f', v))
def string(k, v): put(k, 8, text(v))
def boolean(k, v): put(k, 7, struct.pack('<?', v))
def array(k, t, items): put(k, 9, struct.pack('<IQ', t, len(items)) + b''.join(items))


def token_type(i):
    if sp.is_unknown(i): return 2
    if sp.is_byte(i): return 6
    if sp.is_control(i): return 3
    if sp.id_to_piece(i) == '<tool_call>': return 4
    return 1


string('general.architecture', 'llama')
string('general.name', 'Pocket 1M, a demonstration model')
string('general.license', 'apache-2.0')
string('general.description', 'Trained on WordNet 3.0 glosses (see NOTICE.wordnet) and generated text')
u32('general.file_type', {'f32': 0, 'f16': 1, 'q8_0': 7}[kind])
u32('llama.context_length', 1024)
u32('llama.embedding_length', D)
u32('llama.block_count', L)
u32('llama.feed_forward_length', FF)
u32('llama.attention.head_count', H)
u32('llama.attention.head_count_kv', H)
u32('llama.rope.dimension_count', D//H)
f32('llama.rope.freq_base', 10000.)
f32('llama.attention.layer_norm_rms_epsilon', 1e-5)
u32('llama.vocab_size', V)
string('tokenizer.ggml.model', 'llama')
string('tokenizer.ggml.pre', 'default')
array('tokenizer.ggml.tokens', 8, [text(sp.id_to_piece(i)) for i in range(V)])
array('tokenizer.ggml.scores', 6, [struct.pack('<f', sp.get_score(i)) for i in range(V)])
array('tokenizer.ggml.token_type', 5, [struct.pack('<i', token_type(i)) for i in range(V)])
u32('tokenizer.ggml.bos_token_id', 1)
u32('tokenizer.ggml.eos_token_id', 2)
u32('tokenizer.ggml.unknown_token_id', 0)
boolean('tokenizer.ggml.add_bos_token', True)
boolean('tokenizer.ggml.add_eos_token', False)
boolean('tokenizer.ggml.add_space_prefix', False)
string('tokenizer.chat_template', TEMPLATE)

tensors = [('token_embd.weight', sd['emb.weight']), ('output_norm.weight', sd['n.weight'])]
for i in range(L):
    p, b = f'bl.{i}.', f'blk.{i}.'
    q, k, v = np.split(sd[p+'qkv.weight'], 3, 0)
    gate, up = np.split(sd[p+'gu.weight'], 2, 0)
    tensors += [(b+'attn_norm.weight', sd[p+'n1.weight']), (b+'attn_q.weight', q), (b+'attn_k.weight', k), (b+'attn_v.weight', v),
                (b+'attn_output.weight', sd[p+'o.weight']), (b+'ffn_norm.weight', sd[p+'n2.weight']), (b+'ffn_gate.weight', gate),
                (b+'ffn_up.weight', up), (b+'ffn_down.weight', sd[p+'down.weight'])]


def pack(a):
    if a.ndim == 1 or kind == 'f32':
        return 0, np.ascontiguousarray(a, '<f4').tobytes()
    if kind == 'f16':
        return 1, np.ascontiguousarray(a, '<f2').tobytes()
    x = np.ascontiguousarray(a).reshape(-1, 32)
    d = (np.abs(x).max(1) / 127).astype('<f2')
    df = d.astype('f4')
    q = np.where(df[:, None] > 0, np.rint(x / np.where(df == 0, 1, df)[:, None]), 0).clip(-127, 127).astype('i1')
    return 8, np.concatenate([d.view('i1').reshape(-1, 2), q], 1).tobytes()


head, data = b'', b''
for n, a in tensors:
    t, raw = pack(a)
    dims = a.shape[::-1]
    head += text(n) + struct.pack('<I', len(dims)) + b''.join(struct.pack('<Q', d) for d in dims) + struct.pack('<IQ', t, len(data))
    data += raw + b'\0' * (-len(raw) % 32)
h = b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(kv)) + b''.join(kv) + head
open(out, 'wb').write(h + b'\0' * (-len(h) % 32) + data)
print(out, len(h) + (-len(h) % 32) + len(data), 'bytes')
