# Programs that templates copy into images: their own build context, since that of an app is its tree.
FROM scratch
COPY . /
