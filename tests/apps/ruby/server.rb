# A web server in what Ruby itself brings.
require "socket"

GREETING = "Hello from Ruby"
answer = "#{GREETING}, #{Encoding.default_external}"
$stdout.sync = true
server = TCPServer.new("0.0.0.0", ENV.fetch("PORT").to_i)
loop do
  Thread.new(server.accept) do |client|
    line = client.gets until line == "\r\n" || client.eof?
    client.write "HTTP/1.1 200 OK\r\nContent-Length: #{answer.length + 1}\r\nConnection: close\r\n\r\n#{answer}\n"
    client.close
  end
end
