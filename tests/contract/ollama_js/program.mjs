// Speaks to a gemmule server through the ollama npm package and prints what it got as one JSON object.
import { readFile } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { Ollama } from 'ollama'

const [url, scripts, ggufPath] = process.argv.slice(2)
const says = JSON.parse(scripts)
const ollama = new Ollama({ host: url })
const messages = [{ role: 'user', content: 'hi' }]
const weather = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'the weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}

async function gathered(stream) {
  const parts = []
  for await (const part of stream) parts.push(part)
  return parts
}

async function fault(work) {
  try {
    await work()
    return null
  } catch (error) {
    return { name: error.name, message: error.message, status: error.status_code ?? null }
  }
}

const chat = (more) => ollama.chat({ model: 'scripted', messages, ...more })
const results = {}

results.version = await ollama.version()
results.whole = await chat({ options: { script: says.hello } })
results.streamed = await gathered(await chat({ stream: true, options: { script: says.hello } }))
results.generated = await ollama.generate({ model: 'scripted', prompt: 'hi', options: { script: says.hello } })
results.called = await chat({ think: true, tools: [weather], options: { script: says.call } })
results.structured = await chat({ format: { type: 'object' }, options: { script: says.json } })
results.embedded = await ollama.embed({ model: 'scripted', input: ['a', 'b'] })
results.unknown = await fault(() => ollama.chat({ model: 'nope', messages }))
results.broken = await fault(async () =>
  gathered(await chat({ stream: true, options: { script: says.broken } })),
)
results.aborted = await fault(async () => {
  const stream = await chat({ stream: true, options: { script: says.slow } })
  for await (const part of stream) if (part) stream.abort()
})

if (ggufPath) {
  const data = await readFile(ggufPath)
  const digest = `sha256:${createHash('sha256').update(data).digest('hex')}`
  await fetch(`${url}/api/blobs/${digest}`, { method: 'POST', body: data })
  results.created = await gathered(
    await ollama.create({ model: 'tale', files: { 'stories.gguf': digest }, system: 'Brief.', stream: true }),
  )
  results.shown = await ollama.show({ model: 'tale' })
  results.copied = await ollama.copy({ source: 'tale', destination: 'me/tale' })
  results.deleted = await ollama.delete({ model: 'tale' })
}
results.listed = await ollama.list()
results.running = await ollama.ps()
process.stdout.write(JSON.stringify(results))
