// The npm packages ai and @ai-sdk/openai-compatible, unmodified, through the
// whole network.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, generateText, jsonSchema, streamText, tool } from 'ai'

const { BASE_URL, STUB_BASE_URL, STUB_GONE } = process.env
const provider = createOpenAICompatible({ name: 'tokenplace', baseURL: BASE_URL, includeUsage: true })
const model = provider('pocket')
const prompt = 'What is a river?'
const answer = 'River: a large natural stream of water.'

test('chat', async () => {
  const { text, finishReason, usage } = await generateText({ model, prompt, temperature: 0, maxRetries: 0 })
  assert.equal(text.trim(), answer)
  assert.equal(finishReason, 'stop')
  assert.ok(usage.outputTokens > 3)
})

test('stream', async () => {
  const parts = []
  const { textStream, usage } = streamText({ model, prompt, temperature: 0, maxRetries: 0 })
  for await (const part of textStream) parts.push(part)
  assert.equal(parts.join('').trim(), answer)
  assert.ok(parts.length >= 3, `${parts.length} parts`)
  assert.ok((await usage).outputTokens > 3)
})

test('tools', async () => {
  const { toolCalls } = await generateText({
    model, temperature: 0, maxRetries: 0, prompt: 'What is the weather in Paris?',
    tools: {
      get_weather: tool({
        description: 'Get the weather in a city.',
        inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
      }),
    },
  })
  assert.equal(toolCalls.length, 1)
  assert.equal(toolCalls[0].toolName, 'get_weather')
  assert.equal(typeof toolCalls[0].input.city, 'string')
})

test('error', async () => {
  const call = generateText({ model: provider('no-such-model'), prompt, maxRetries: 0 })
  await assert.rejects(call, (err) => {
    assert.ok(APICallError.isInstance(err), String(err))
    assert.equal(err.statusCode, 404)
    assert.match(err.message, /no-such-model.*pocket/)
    assert.match(err.responseBody, /model_not_found/)
    return true
  })
})

test('abort stops the engine', async () => {
  const slow = createOpenAICompatible({ name: 'tokenplace', baseURL: STUB_BASE_URL })
  const abort = new AbortController()
  const { textStream } = streamText({
    model: slow('stub'), prompt, maxRetries: 0, abortSignal: abort.signal, onError: () => {},
  })
  let parts = 0
  try {
    for await (const _ of textStream) if (++parts === 3) abort.abort()
  } catch (err) {
    assert.equal(err.name, 'AbortError')
  }
  assert.ok(parts < 100, `${parts} parts after the abort`)
  assert.equal((await fetch(STUB_GONE)).status, 200)
})
